"""The model handler of a step, and the functions that make its examples and its answers.

Knows the three kinds of handlers: this project's, a remote endpoint, and any class by its dotted path. Dotted paths
come from the user's own config, so they are trusted.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from apache_beam.ml.inference.base import ModelHandler, PredictionResult

from inference.beam.handlers.mindspore import MindSporeModelHandler
from inference.beam.handlers.openai import OpenAIModelHandler
from inference.beam.handlers.row_by_row import RowByRow, RowFailure
from inference.beam.pipeline.chunks import Chunked
from inference.beam.pipeline.steps import Step
from inference.config import InferenceConfig, Override, load_config, override_config
from inference.config.presets import find_preset, is_preset
from inference.config.secrets import hide_secrets
from inference.errors import ConfigError, InferenceError, did_you_mean
from inference.generation.record import MODEL_FAILED, Completion, failed_completion
from inference.jobs.identity import model_identity
from inference.models.source import resolve

OBJECT = "object"


@dataclass(frozen=True)
class StepModel:
    """The model that runs in a step.

    Args:
        name: display name of the model.
        identity: everything that determines its answers, to check a resumed run.
        prepare: makes the handler's example from the step's input; None to use the input.
        result: makes an answer from the handler's result; None to use the result.
    """

    handler: ModelHandler
    name: str
    identity: Mapping[str, Any]
    prepare: Callable[[Any], Any] | None = None
    result: Callable[[Any], Any] | None = None


def model_of(step: Step, config: InferenceConfig) -> StepModel:
    """Check and return the model of a step. Does not load it.

    Args:
        config: the whole config; its model is the default for steps without one.

    Raises:
        ConfigError: a class or function does not exist, or rejects its arguments.
        InferenceError: a model cannot be found.
    """
    settings = step.settings
    chunk = config.pipeline.preprocess.chunk

    def chunked(handler: ModelHandler, own: InferenceConfig) -> ModelHandler:
        # The rows of the input are long; prompts that a template makes from answers are the user's responsibility.
        is_first = not step.parents and step.template is None
        return handler if chunk.tokens is None or not is_first else Chunked(handler, own, chunk)

    if settings.remote is not None:
        remote = _made(step, OpenAIModelHandler, settings.remote)
        endpoint = settings.remote
        about = {key: endpoint.get(key) for key in ("url", "model", "api", "extra")}
        return StepModel(chunked(remote, config), str(endpoint["model"]), {"remote": about})
    if settings.handler is not None:
        return _foreign(step)
    own = config_of_step(step, config)
    handler = _made(step, MindSporeModelHandler, own)
    source = resolve(own)
    identity = model_identity(source, source.pairs(), source.tokenizer(), source.generation)
    return StepModel(chunked(handler, own), source.name, identity)


def config_of_step(step: Step, config: InferenceConfig) -> InferenceConfig:
    """The config of a step that uses one of our models."""
    name = step.settings.config
    if name is not None:
        is_file = not is_preset(name) or name.endswith((".yaml", ".yml"))
        config = load_config(name if is_file else find_preset(name))
    where = f"pipeline.steps.{step.name}.options"
    return override_config(config, [Override(key, value, where) for key, value in step.settings.options.items()])


def _foreign(step: Step) -> StepModel:
    settings, where = step.settings, f"pipeline.steps.{step.name}"
    assert settings.handler is not None
    kind = imported(settings.handler, f"{where}.handler")
    if not isinstance(kind, type) or not issubclass(kind, ModelHandler):
        raise ConfigError(
            f"{where}.handler: {settings.handler} is not a ModelHandler", "give the path of a ModelHandler class"
        )
    handler = _made(step, kind)
    functions = {
        key: imported(path, f"{where}.{key}") if (path := getattr(settings, key)) else None
        for key in ("prepare", "result")
    }
    about = {"handler": settings.handler, "arguments": settings.arguments}
    return StepModel(
        RowByRow(handler, settings.arguments), kind.__name__, about, functions["prepare"], functions["result"]
    )


def _made(step: Step, kind: type[ModelHandler], *first: Any) -> ModelHandler:
    """Make a handler from leading arguments and the step's own arguments."""
    where = f"pipeline.steps.{step.name}"
    given = step.settings.arguments
    arguments = {name: argument(value, f"{where}.arguments.{name}") for name, value in given.items()}
    try:
        return kind(*first, **arguments)
    except InferenceError:
        raise
    except Exception as error:  # another project's constructor may raise anything
        raise ConfigError(
            f"{where}: {kind.__name__} rejects these arguments: {hide_secrets(str(error), given)}"
        ) from error


def imported(path: str, where: str) -> Any:
    """Import the object that a dotted path names.

    Raises:
        ConfigError: there is no such object, or it cannot be imported.
    """
    module_name, _, rest = path.rpartition(".")
    attributes = [rest]
    while module_name:
        try:
            found: Any = importlib.import_module(module_name)
            break
        except ModuleNotFoundError as error:
            if error.name is not None and not module_name.startswith(error.name):
                raise ConfigError(f"{where}: {path} needs the package {error.name}", "install it") from error
            module_name, _, more = module_name.rpartition(".")
            attributes.insert(0, more)
        except ImportError as error:
            raise ConfigError(f"{where}: {path} cannot be imported: {error}") from error
    else:
        raise ConfigError(
            f"{where}: {path} does not exist", "give a dotted path to something installed or in PYTHONPATH"
        )
    for name in attributes:
        if not hasattr(found, name):
            raise ConfigError(f"{where}: {path} has no {name}", did_you_mean(name, dir(found)))
        found = getattr(found, name)
    return found


def argument(value: Any, where: str) -> Any:
    """A value from YAML, with every `{object: dotted.path}` in it replaced by the object that the path names."""
    if isinstance(value, Mapping):
        if set(value) == {OBJECT}:
            return imported(str(value[OBJECT]), where)
        return {key: argument(item, where) for key, item in value.items()}
    return [argument(item, where) for item in value] if isinstance(value, list) else value


def answer_of(result: Any, name: str, make: Callable[[Any], Any] | None) -> dict[str, Any]:
    """Convert a handler's result to a record. Records of our handlers are kept; others become a text and a JSON value.

    Args:
        name: name of the model, if the result has none.
    """
    failure = result if isinstance(result, RowFailure) else None
    inference, model = result, name
    if isinstance(result, PredictionResult):
        inference, model = result.inference, result.model_id or name
    if isinstance(inference, Mapping) and "finish_reason" in inference and "error" in inference:
        return dict(inference)
    value = None
    if failure is None:
        try:
            value = plain(make(inference) if make else inference)
        except Exception as error:  # the user's function may raise anything
            failure = RowFailure(f"{type(error).__name__}: {error}")
    if failure is not None:
        return failed_completion(None, None, MODEL_FAILED, failure.message, model=model).as_dict()
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return {**Completion(None, text=text, model=model).as_dict(), "value": value}


def plain(value: Any) -> Any:
    """Convert a result to JSON values: arrays and tensors become lists of Python numbers."""
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return str(value)
