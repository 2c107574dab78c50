"""The part of a model handler that depends on prompts as elements, not on the model that answers them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from inference.answering.elements import num_bytes, prepared
from inference.answering.shared_model import Notes, check_settings


class PromptHandler:
    """Handles sizes, settings and the metrics namespace. Make it the first base class of a `ModelHandler`.

    Attributes:
        namespace: namespace of the handler's metrics, unless the pipeline sets another.
        notes: receives the record of each answer as it arrives, before its batch is done. It is sent to workers.
        prepare: makes an example of an element; None if elements are examples.
    """

    namespace: str
    notes: Notes | None = None
    prepare: Callable[[Any], Any] | None = None
    _named = ""

    @property
    def _namespace(self) -> str:
        """The namespace of our metrics: the pipeline's if it sets one, else the handler's."""
        return self._named or self.namespace

    def get_num_bytes(self, batch: Sequence[Any]) -> int:
        """Size of the batch's prompts, bytes; Beam's own size of the batch if any element is not a prompt."""
        sizes = [num_bytes(example) for example in self._examples(batch)]
        known = [size for size in sizes if size is not None]
        return sum(known) if len(known) == len(sizes) else int(super().get_num_bytes(batch))  # type: ignore[misc]

    def _examples(self, batch: Sequence[Any]) -> list[Any]:
        """The examples made from the elements of a batch."""
        return [prepared(element, self.prepare) for element in batch]

    def get_metrics_namespace(self) -> str:
        return self.namespace

    def validate_inference_args(self, inference_args: dict[str, Any] | None) -> None:
        """Check generation settings.

        Raises:
            ConfigError: a setting is unknown or invalid; the message names the nearest known one.
        """
        check_settings(inference_args)

    def override_metrics(self, metrics_namespace: str = "") -> bool:
        """Put our metrics into the given namespace; Beam's own metrics are not replaced."""
        self._named = metrics_namespace
        return False
