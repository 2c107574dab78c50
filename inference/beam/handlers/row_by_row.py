"""Per-row error handling for any model handler.

Knows Beam's handlers; knows nothing about the models in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from apache_beam.ml.inference.base import ModelHandler

from inference.config.secrets import hide_secrets


@dataclass(frozen=True)
class RowFailure:
    """The reason why a row has no result."""

    message: str


class RowByRow(ModelHandler[Any, Any, Any]):
    """Wraps another handler.

    A batch that raises is split in half until the failing rows are found. Each failing row gets a `RowFailure`; the
    others get their results.

    Args:
        base: the wrapped handler.
        settings: the arguments that made it; secrets in them are masked in errors.
    """

    def __init__(self, base: ModelHandler, settings: Mapping[str, Any] | None = None):
        self._base, self._made_with = base, settings

    @property
    def base(self) -> ModelHandler:
        """The wrapped handler."""
        return self._base

    def run_inference(
        self, batch: Sequence[Any], model: Any, inference_args: dict[str, Any] | None = None
    ) -> Iterable[Any]:
        try:
            results = list(self._base.run_inference(batch, model, inference_args))
            if len(results) != len(batch):
                name = type(self._base).__name__
                raise ValueError(f"{name} gave {len(results)} results for a batch of {len(batch)}")
            return results
        except Exception as error:  # any error of a model becomes the failure of its rows
            if len(batch) == 1:
                return [RowFailure(hide_secrets(f"{type(error).__name__}: {error}", self._made_with))]
        middle = len(batch) // 2
        halves = (batch[:middle], batch[middle:])
        return [result for half in halves for result in self.run_inference(half, model, inference_args)]

    def load_model(self) -> Any:
        return self._base.load_model()

    def get_num_bytes(self, batch: Sequence[Any]) -> int:
        return self._base.get_num_bytes(batch)

    def get_metrics_namespace(self) -> str:
        return self._base.get_metrics_namespace()

    def get_resource_hints(self) -> dict[str, Any]:
        return self._base.get_resource_hints()

    def batch_elements_kwargs(self) -> Mapping[str, Any]:
        return self._base.batch_elements_kwargs()

    def validate_inference_args(self, inference_args: dict[str, Any] | None) -> None:
        self._base.validate_inference_args(inference_args)

    def update_model_path(self, model_path: str | None = None) -> None:
        self._base.update_model_path(model_path)

    def get_preprocess_fns(self) -> Iterable[Callable[[Any], Any]]:
        return self._base.get_preprocess_fns()

    def get_postprocess_fns(self) -> Iterable[Callable[[Any], Any]]:
        return self._base.get_postprocess_fns()

    def should_skip_batching(self) -> bool:
        return self._base.should_skip_batching()

    def set_environment_vars(self) -> None:
        self._base.set_environment_vars()

    def share_model_across_processes(self) -> bool:
        return self._base.share_model_across_processes()

    def model_copies(self) -> int:
        return self._base.model_copies()

    def override_metrics(self, metrics_namespace: str = "") -> bool:
        return self._base.override_metrics(metrics_namespace)

    def should_garbage_collect_on_timeout(self) -> bool:
        return self._base.should_garbage_collect_on_timeout()
