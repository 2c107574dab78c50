"""What Beam asks of a handler whose elements are prompts, whoever answers them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from inference.beam.serving.elements import num_bytes
from inference.beam.serving.shared_model import Notes, check_settings


class PromptHandler:
    """Sizes, settings and the namespace of metrics; to be the first base of a `ModelHandler`.

    Attributes:
        namespace: of the handler's metrics, where the pipeline names no other.
        notes: get the record of each answer as it comes, before its batch is done; to be sent to workers.
    """

    namespace: str
    notes: Notes | None = None
    _named = ""

    @property
    def _namespace(self) -> str:
        """Of our metrics: the pipeline's, if it names one."""
        return self._named or self.namespace

    def get_num_bytes(self, batch: Sequence[Any]) -> int:
        """Bytes of the batch's prompts; of the batch as Beam counts it where there is anything else."""
        sizes = [num_bytes(example) for example in batch]
        known = [size for size in sizes if size is not None]
        return sum(known) if len(known) == len(sizes) else int(super().get_num_bytes(batch))  # type: ignore[misc]

    def get_metrics_namespace(self) -> str:
        return self.namespace

    def validate_inference_args(self, inference_args: dict[str, Any] | None) -> None:
        """Refuses generation settings that are unknown or impossible.

        Raises:
            ConfigError: with the nearest known one.
        """
        check_settings(inference_args)

    def override_metrics(self, metrics_namespace: str = "") -> bool:
        """Beam's own metrics stay as they are; ours go into the same namespace."""
        self._named = metrics_namespace
        return False
