"""`MindSporeModelHandler`: Beam's ModelHandler on this project's engine.

Knows Beam's handler interface; `serving` answers the rows.
"""

from __future__ import annotations

import copy
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from apache_beam.ml.inference.base import ModelHandler, PredictionResult

from inference.answering.columns import with_threads
from inference.answering.elements import TokenLength
from inference.answering.shared_model import LoadedModel
from inference.api.auto import YAML_SUFFIXES, AutoConfig
from inference.api.backend import check_backend
from inference.beam.handlers import beam_repairs
from inference.beam.handlers.answer_metrics import AnswerMetrics
from inference.beam.handlers.beam_repairs import note_loaded
from inference.beam.handlers.prompt_handler import PromptHandler
from inference.beam.serving.hot_swap import Candidate, Reply, ServedModel, Trial, loaded, tried
from inference.beam.serving.worker_lifetime import follow
from inference.config import InferenceConfig, Override, load_config, override_config
from inference.context import check_device
from inference.errors import ConfigError
from inference.models.source import CONFIG_FILE, resolve

beam_repairs.apply()

NAMESPACE = "BeamML_MindSpore"
# Batch size as a multiple of the rows that the engine runs at once, so that the engine stays full while rows finish.
BATCH_OF_RUNNING = 4
ConfigLike = str | Path | InferenceConfig | AutoConfig | Mapping[str, Any]


class MindSporeModelHandler(PromptHandler, ModelHandler[Any, PredictionResult, ServedModel]):
    """Answers prompts.

    An element is a text, token ids, or a mapping like a line of a .jsonl file: `prompt` or `messages`, optionally
    `custom_id` and generation settings. It may also be the PredictionResult of another RunInference, whose answer is
    then the prompt. `PredictionResult.inference` is a record as the batch job writes it: `text`,
    `token_ids`, `finish_reason`, `prompt_tokens`, `completion_tokens`, times, and `error`, which is None or the reason
    for the failure. The rows of a batch run together. All steps and threads of a process that have the same
    config share one model.

    Args:
        config: a preset's name, a directory, a YAML file, a Hugging Face repository, a config object, or a mapping of
            a config's sections.
        model_id: name of the model in results; the model's own name by default.
        check: check the device, the model, its weights and its tokenizer now. Turn this off if only the workers have
            them.
        min_batch_size: rows; by default four times the rows that the engine runs at once.
        max_batch_size: rows.
        max_batch_duration_secs: longest time that a row may wait for others, across bundles.
        max_batch_weight: maximum total weight of a batch's rows.
        element_size_fn: returns the weight of an element; by default the number of its prompt's tokens.
        batch_length_fn: returns the length of an element, to batch rows of similar length; by default the number of
            its prompt's tokens, if boundaries are given.
        batch_bucket_boundaries: lengths at which buckets begin.
        large_model: share one model between all processes of a machine.
        model_copies: number of models per machine.
        env_vars: environment variables to set before the model is loaded.
        validation_rows: prompts that a replacement model must answer first. A mapping may have a `reference`, which
            the answer must equal.
        validation_fn: takes the records of these answers; returns why the model is rejected, or None to accept it.
        prepare: makes an example from an element; for pipelines whose elements are not prompts. If it raises, that row
            fails.

    Raises:
        ConfigError: a setting is unknown or invalid.
        ModelNotFoundError: the model cannot be found.
        DeviceError: the device does not exist.
    """

    # A subclass need not call this class's __init__: Beam does not require it.
    _config: InferenceConfig | None = None
    _model_id: str | None = None
    _candidate: Candidate | None = None
    _trial = Trial()
    _lineage = ""
    namespace = NAMESPACE
    _kept: LoadedModel | None = None

    def __init__(
        self,
        config: ConfigLike,
        *,
        model_id: str | None = None,
        check: bool = True,
        min_batch_size: int | None = None,
        max_batch_size: int | None = None,
        max_batch_duration_secs: int | None = None,
        max_batch_weight: int | None = None,
        element_size_fn: Callable[[Any], int] | None = None,
        batch_length_fn: Callable[[Any], int] | None = None,
        batch_bucket_boundaries: list[int] | None = None,
        large_model: bool = False,
        model_copies: int | None = None,
        env_vars: Mapping[str, str] | None = None,
        validation_rows: Sequence[Any] = (),
        validation_fn: Callable[[list[dict[str, Any]]], str | None] | None = None,
        prepare: Callable[[Any], Any] | None = None,
    ):
        self._config = config_from(config)
        self.prepare = prepare
        tokens = TokenLength(self._config, prepare)
        if max_batch_weight is not None and element_size_fn is None:
            element_size_fn = tokens
        if batch_bucket_boundaries is not None and batch_length_fn is None:
            batch_length_fn = tokens
        if min_batch_size is None:
            wanted = BATCH_OF_RUNNING * self._config.rows_at_once
            min_batch_size = min(wanted, max_batch_size or wanted)
        super().__init__(
            min_batch_size=min_batch_size,
            max_batch_size=max_batch_size,
            max_batch_duration_secs=max_batch_duration_secs,
            max_batch_weight=max_batch_weight,
            element_size_fn=element_size_fn,
            large_model=large_model,
            model_copies=model_copies,
            env_vars=dict(env_vars or {}),
        )
        # Beam versions before 2.75 lack these arguments.
        if batch_length_fn is not None:
            self._batching_kwargs["length_fn"] = batch_length_fn
        if batch_bucket_boundaries is not None:
            self._batching_kwargs["bucket_boundaries"] = batch_bucket_boundaries
        self._model_id = model_id
        self._trial = Trial(tuple(validation_rows), validation_fn)
        self._lineage = uuid.uuid4().hex
        if check:
            check_device(self._config)
            check_backend(self._config)
            source = resolve(self._config)
            source.pairs()
            source.tokenizer()

    @property
    def has_model(self) -> bool:
        """Whether the handler was made with a config; a subclass may load its own model."""
        return self._config is not None

    def load_model(self) -> ServedModel:
        """Load the model, or return the one that this process has already loaded.

        After `update_model_path`, the new model must pass its validation; otherwise the last good one is used.

        Raises:
            InferenceError: the model cannot be found or loaded.
        """
        follow()
        # Copies are separate models. Without copies, all steps of a process share one model.
        copy_id = uuid.uuid4().hex if self.model_copies() > 1 else ""
        own, wanted, refused = self._own(), self._candidate, None
        if wanted is None:
            model, taken = loaded(own, copy_id), own
        else:
            try:
                model, taken = tried(wanted, self._trial, copy_id), wanted
            except Exception as error:  # keep the last good model, whatever the broken one raises
                taken, refused = _last_good.get(self._lineage, own), (wanted, error)
                model = loaded(taken, copy_id)
        _last_good[self._lineage] = taken
        self._kept = model
        note_loaded(model.num_bytes)
        return ServedModel(model, taken, self._trial, refused, copy_id)

    def set_threads(self, cpus: int, where: str) -> None:
        """Set the model's number of threads, from the next `load_model` on, unless its config sets it.

        Args:
            where: what set the number.
        """
        if self._config is not None:
            self._config = with_threads(self._config, cpus, where)

    def candidate(self, path: str, name: str | None = None, stamp: str = "") -> Candidate:
        """A model to replace this handler's own.

        Args:
            path: a model directory, a file of weights, a YAML file, or a preset's name.
            name: its name in metrics; by default the name of its directory or file.
            stamp: distinguishes versions at the same path.
        """
        assert self._config is not None
        return Candidate(config_at(self._config, path), path, name_of(path) if name is None else name, stamp)

    def begin_with(self, candidate: Candidate | None) -> None:
        """Load this model instead of the handler's own, which remains the fallback; None for the handler's own."""
        self._candidate = candidate
        _last_good.pop(self._lineage, None)

    def update_model_path(self, model_path: str | None = None) -> None:
        """Switch to another model at the next `load_model`.

        Args:
            model_path: a model directory, a file of weights, a YAML file, or a preset's name; None changes nothing.
        """
        if model_path:
            self._candidate = self.candidate(model_path)

    def run_inference(
        self, batch: Sequence[Any], model: ServedModel, inference_args: dict[str, Any] | None = None
    ) -> Iterable[PredictionResult]:
        """Answer a batch: one result per element, in order.

        Args:
            model: the result of `load_model`, or a proxy to it in another process.
            inference_args: generation settings for all rows.
        """
        started = time.perf_counter()
        reply: Reply = model.answer(self._examples(batch), dict(inference_args or {}), self.notes)
        AnswerMetrics(self._namespace).update(reply, time.perf_counter() - started)
        return [
            PredictionResult(example, made, reply.model_id)
            for example, made in zip(batch, reply.answers.records, strict=True)
        ]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_kept"}

    def __deepcopy__(self, memo: dict[int, Any]) -> MindSporeModelHandler:
        """An independent handler: replacing its model does not affect the original."""
        twin: MindSporeModelHandler = object.__new__(type(self))
        twin.__dict__.update(copy.deepcopy(self.__getstate__(), memo))
        twin._lineage = uuid.uuid4().hex
        if self._lineage in _last_good:
            _last_good[twin._lineage] = _last_good[self._lineage]
        return twin

    def _own(self) -> Candidate:
        assert self._config is not None
        return Candidate(self._config, self._model_id or resolve(self._config).name)


# The last good model of each handler, shared by all copies of the handler in this process.
_last_good: dict[str, Candidate] = {}


def config_from(config: ConfigLike) -> InferenceConfig:
    """Read a config in any of the forms that a handler accepts."""
    if isinstance(config, InferenceConfig):
        return config
    if isinstance(config, AutoConfig):
        return config.inference_config
    if isinstance(config, Mapping):
        return load_config(config)
    if not isinstance(config, (str, Path)):
        raise ConfigError(f"config is {type(config).__name__}", "give a path, a preset's name, or a mapping")
    return AutoConfig.from_pretrained(config).inference_config


def config_at(config: InferenceConfig, path: str) -> InferenceConfig:
    """A config with the model at `path`; all other settings stay the same."""
    if path.endswith(YAML_SUFFIXES):
        return load_config(path)
    whole_model = not Path(path).is_file()
    changes = {"pretrained_model_dir": path, "load_checkpoint": None} if whole_model else {"load_checkpoint": path}
    return override_config(config, [Override(key, value, "the model's path") for key, value in changes.items()])


def name_of(path: str) -> str:
    """A model's name, from its path: for a file in a model directory, the name of the directory."""
    place = Path(path)
    return place.parent.name if (place.parent / CONFIG_FILE).is_file() else place.stem
