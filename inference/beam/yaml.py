"""This project's models in Beam YAML: importing this module registers handlers for Beam YAML's RunInference.

A YAML file imports it by naming one of its transforms as a Python provider:

    providers:
      - type: python
        config: {}
        transforms:
          AnswerPrompts: inference.beam.yaml.AnswerPrompts

`RunInference` then knows `MindSporeModelHandler` and `OpenAIModelHandler`. `AnswerPrompts` puts answers into columns,
and can send failed rows to a separate output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Optional

import apache_beam as beam
from apache_beam.ml.inference.base import KeyedModelHandler, PredictionResult
from apache_beam.pvalue import TaggedOutput
from apache_beam.typehints.row_type import RowTypeConstraint
from apache_beam.typehints.schemas import named_fields_from_element_type
from apache_beam.yaml.yaml_ml import ModelHandlerProvider

from inference.beam.handlers.mindspore import MindSporeModelHandler
from inference.beam.handlers.openai import OpenAIModelHandler
from inference.beam.transform import RunInference
from inference.errors import ConfigError

# Keys of a record that become columns, with their Beam types.
ANSWER: list[tuple[str, Any]] = [
    ("text", Optional[str]),  # noqa: UP045  # Beam's schemas do not know `str | None` on Python 3.10
    ("finish_reason", Optional[str]),  # noqa: UP045
    ("prompt_tokens", Optional[int]),  # noqa: UP045
    ("completion_tokens", Optional[int]),  # noqa: UP045
    ("error", Optional[str]),  # noqa: UP045
]
FAILED = "failed"


class _Provider(ModelHandlerProvider):
    """The common part of both handlers: takes a row's `prompt` or `messages`, and returns the columns of `ANSWER`.

    Args:
        preprocess: Beam YAML's function that maps a row to the handler's element.
        postprocess: Beam YAML's function that maps a PredictionResult to an output.
    """

    def __init__(self, handler: Any, preprocess: Any = None, postprocess: Any = None):
        super().__init__(handler, preprocess, postprocess)
        self._is_ours = postprocess is None

    @staticmethod
    def default_preprocess_fn() -> Callable[[Any], Any]:
        return element_of

    @staticmethod
    def default_postprocess_fn() -> Callable[[Any], Any]:
        return answer_of

    def inference_output_type(self) -> Any:
        return RowTypeConstraint.from_fields(ANSWER) if self._is_ours else Any

    @staticmethod
    def validate(model_handler_spec: Mapping[str, Any]) -> None:
        """Nothing to do: the constructor checks everything."""


@ModelHandlerProvider.register_handler_type("MindSporeModelHandler")
class MindSporeProvider(_Provider):
    """`type: MindSporeModelHandler`; all other keys are arguments of the handler."""

    def __init__(self, config: Any, preprocess: Any = None, postprocess: Any = None, **arguments: Any):
        super().__init__(MindSporeModelHandler(config, **arguments), preprocess, postprocess)


@ModelHandlerProvider.register_handler_type("OpenAIModelHandler")
class OpenAIProvider(_Provider):
    """`type: OpenAIModelHandler`; all other keys are arguments of the handler."""

    def __init__(self, endpoint: Any, preprocess: Any = None, postprocess: Any = None, **arguments: Any):
        super().__init__(OpenAIModelHandler(endpoint, **arguments), preprocess, postprocess)


def element_of(row: Any) -> Any:
    """The handler's element for a row: its `prompt`, or its `messages` as a chat.

    Raises:
        ConfigError: the row has neither.
    """
    values = row._asdict()
    for key in ("prompt", "messages"):
        if values.get(key) is not None:
            return {key: _plain(values[key])}
    raise ConfigError(f"a row has no prompt: {', '.join(values)}", "name the column 'prompt', or give a preprocess")


def answer_of(result: PredictionResult) -> beam.Row:
    """The columns of an answer."""
    record = result.inference
    error = record["error"]
    values = {name: record[name] for name, _ in ANSWER if name != "error"}
    return beam.Row(**values, error=None if error is None else f"{error['type']}: {error['message']}")


def _plain(value: Any) -> Any:
    """Convert a value of a row to plain Python; in YAML, messages have Beam's types."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


class AnswerPrompts(beam.PTransform):
    """Answers rows: adds the columns of an answer to each.

    Args:
        config: config of the model, as for `MindSporeModelHandler`.
        settings: generation settings for all rows.
        error_handling: as in Beam YAML: `{output: NAME}` sends failed rows to an output of that name.
    """

    def __init__(
        self,
        config: Any,
        settings: Mapping[str, Any] | None = None,
        error_handling: Mapping[str, str] | None = None,
    ):
        super().__init__()
        self._handler = MindSporeModelHandler(config)
        self._settings = dict(settings or {}) or None
        self._failed = dict(error_handling or {}).get("output")

    def expand(self, rows: Any) -> Any:
        schema = RowTypeConstraint.from_fields([*named_fields_from_element_type(rows.element_type), *ANSWER])
        answered = (
            rows
            | "Ask" >> beam.Map(lambda row: (row, element_of(row)))
            | RunInference(KeyedModelHandler(self._handler), inference_args=self._settings)
        )
        apart = answered | "Columns" >> beam.ParDo(_Columns(self._failed is not None)).with_outputs(FAILED, main="good")
        good = apart["good"] | "Good" >> beam.Map(lambda row: row).with_output_types(schema)
        if self._failed is None:
            return good
        return {
            "good": good,
            self._failed: apart[FAILED] | "Bad" >> beam.Map(lambda row: row).with_output_types(schema),
        }


class _Columns(beam.DoFn):
    """Adds the columns of its answer to each row."""

    def __init__(self, failures_apart: bool):
        self._apart = failures_apart

    def process(self, item: tuple[Any, PredictionResult]) -> Iterator[Any]:
        row, result = item
        answer = answer_of(result)._asdict()
        whole = beam.Row(**{**row._asdict(), **answer})
        yield TaggedOutput(FAILED, whole) if self._apart and answer["error"] is not None else whole
