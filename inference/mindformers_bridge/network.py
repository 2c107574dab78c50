"""This project's networks as classes that MindFormers can build and drive.

MindFormers' generate loop manages the KV cache's block tables and asks the model for logits: first for all prompts,
then for one token per row. Both become a `StepBatch`; MindFormers samples and stops. Its block 0 is our block 1,
because our block 0 belongs to no sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from mindformers.core.context import set_context
from mindformers.generation.logits_process import run_using_numpy
from mindformers.models import PretrainedConfig, PreTrainedModel
from mindspore import Tensor, get_context, ops

from inference.config import InferenceConfig, load_config
from inference.errors import InferenceError
from inference.generation.model import GenerativeModel
from inference.mindformers_bridge.arrays import checkpoint_of
from inference.models.block_pool import NULL_BLOCK
from inference.models.source import ModelSource, resolve
from inference.models.step import SequenceStep, StepBatch
from inference.terminal.output import say

# Attributes of every MindFormers config that are not model settings.
_NOT_OURS = ("_name_or_path", "_commit_hash", "checkpoint_name_or_path", "pretrained_model_dir", "is_encoder_decoder")
_FIRST_BLOCK = NULL_BLOCK + 1
Class = TypeVar("Class", bound=type)


class InferenceModelConfig(PretrainedConfig):
    """The keys of `model.model_config`, under MindFormers' or Hugging Face's names.

    `checkpoint_name_or_path` is anything that --load_checkpoint accepts. An unknown key is an error when the model is
    built. `num_blocks` and `block_size` set the size of the KV cache that MindFormers allocates from.
    """

    model_type = "inference"
    # The architecture of a class that is registered under a family's name; `architectures` or `model_type` override it.
    architecture: str | None = None

    def __init__(self, **settings: Any):
        # A given parallel_config applies only to MindFormers' own networks; the default one is complete.
        given = {name: value for name, value in settings.items() if name != "parallel_config"}
        super().__init__(**given)
        self.is_encoder_decoder = False
        self.is_dynamic = False
        self.use_past = given.get("use_past", True)
        self.batch_size = given.get("batch_size") or 1
        self.block_size = given.get("block_size") or 16
        limit = given.get("max_position_embeddings") or given.get("max_position_embedding")
        self.seq_length = given.get("seq_length") or limit or 2048
        self.num_blocks = given.get("num_blocks") or max(512, self.batch_size * -(-self.seq_length // self.block_size))

    def inference_config(self, checkpoint: str | None = None) -> InferenceConfig:
        """Convert the settings to this project's config.

        Raises:
            ConfigError: a key is unknown.
        """
        settings = {name: _plain(value) for name, value in self.__dict__.items() if name not in _NOT_OURS}
        settings = {name: value for name, value in settings.items() if value is not None}
        # The names of this config class are not architectures.
        settings.pop("type", None)
        if settings.get("model_type") == type(self).model_type:
            del settings["model_type"]
        if self.architecture and not {"architectures", "model_type"} & set(settings):
            settings["architectures"] = [self.architecture]
        sections = {
            "model": {"model_config": settings},
            # MindFormers allocates the blocks.
            "engine": {"block_size": self.block_size, "random_weights": checkpoint is None},
            "predict_batch_size": self.batch_size,
            "load_checkpoint": checkpoint,
            "pretrained_model_dir": self.pretrained_model_dir or None,
        }
        return load_config(sections)


class InferenceForCausalLM(PreTrainedModel):
    """A decoder-only model of this project. It has no MindSpore parameters: the first step reads the weights directly
    into the kernels' memory.
    """

    config_class = InferenceModelConfig

    def __init__(self, config: InferenceModelConfig):
        super().__init__(config, auto_prefix=False)
        self.checkpoint: str | None = config.checkpoint_name_or_path
        # MindFormers' default is not available on a CPU.
        self.argmax = ops.argmax
        self._arrays: Mapping[str, Any] | None = None
        self._built: GenerativeModel | None = None

    def generate(self, *arguments: Any, **settings: Any) -> Any:
        """Generate as MindFormers does. On a CPU, its sampling runs in numpy: the operators that it uses by default
        (TopkExt, SortExt) are not registered there.
        """
        sampling = settings.get("do_sample")
        if sampling is None:
            sampling = getattr(settings.get("generation_config") or self.generation_config, "do_sample", False)
        if not sampling or get_context("device_target") != "CPU":
            return super().generate(*arguments, **settings)
        with _numpy_sampling():
            return super().generate(*arguments, **settings)

    # Methods through which MindFormers passes weights.

    def load_weights(self, weights_path: str) -> None:
        """Use a file or directory of weights (newer YAML style)."""
        self.checkpoint, self._arrays, self._built = weights_path, None, None

    def fuse_weight_from_ckpt(self, ckpt_dict: dict[str, Any]) -> dict[str, Any]:
        """Take the tensors of a .ckpt file; MindSpore has none left to load."""
        self._arrays, self._built = ckpt_dict, None
        return {}

    def convert_name(self, weight_name: str) -> str:
        """Make MindFormers pass the tensors of every safetensors file to `convert_weight_dict`."""
        return f"inference.{weight_name}"

    def convert_weight_dict(self, source_dict: dict[str, Any], **settings: Any) -> dict[str, Any]:
        """Take the tensors of safetensors files; MindSpore has none left to load."""
        return self.fuse_weight_from_ckpt(source_dict)

    # Methods that the generate loop calls.

    def set_dynamic_inputs(self, **kwargs: Any) -> None:
        """Nothing to do: the network accepts every length."""

    def _set_kv_cache(self) -> None:
        """Nothing to do: the kernels hold the cache."""

    def _set_lower_triangle_mask(self) -> None:
        """Nothing to do: the kernels mask by position."""

    def forward(
        self,
        input_ids: np.ndarray,
        valid_length_each_example: np.ndarray,
        block_tables: np.ndarray | None = None,
        slot_mapping: np.ndarray | None = None,
        prefill: bool | None = None,
        use_past: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, np.ndarray]:
        """Compute the logits [B, vocabulary] of the token after each row.

        Args:
            input_ids: int [B, seq_length], padded on the right.
            valid_length_each_example: int [B], length of each row so far, tokens.
            block_tables: int32 [B, blocks], padded with -1; None without a cache.
            slot_mapping: unused, since it follows from `block_tables`.
            prefill: whether all tokens are new, not just the last one.
        """
        rows = np.reshape(input_ids, (-1, np.shape(input_ids)[-1]))
        ends = [int(length) for length in valid_length_each_example]
        starts = [0 if prefill or not use_past else end - 1 for end in ends]
        tokens = [row[start:end] for row, start, end in zip(rows, starts, ends, strict=True)]
        return self._logits(tokens, starts, block_tables), np.arange(len(rows))

    def forward_mcore(
        self,
        input_ids: np.ndarray,
        valid_length_each_example: np.ndarray,
        block_tables: np.ndarray | None = None,
        slot_mapping: np.ndarray | None = None,
        prefill: bool | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """Like `forward`, with the tokens of all rows concatenated: all tokens, or the last one of each row."""
        ends = [int(length) for length in valid_length_each_example]
        starts = [0 if prefill else end - 1 for end in ends]
        borders = np.cumsum([end - start for start, end in zip(starts, ends, strict=True)])
        return self._logits(np.split(np.reshape(input_ids, -1), borders[:-1]), starts, block_tables), None

    def _logits(self, tokens: Sequence[np.ndarray], starts: Sequence[int], block_tables: np.ndarray | None) -> Tensor:
        model = self.load()
        if block_tables is None:
            # Without use_past, every step recomputes all tokens, so each row can keep the same blocks.
            count = self.config.num_blocks // len(tokens)
            block_tables = np.arange(len(tokens) * count).reshape(len(tokens), count)
        tables = block_tables + _FIRST_BLOCK
        rows = zip(tokens, starts, tables, strict=True)
        sequences = [SequenceStep(row.tolist(), start, table) for row, start, table in rows]
        return Tensor(model.runner.step(StepBatch.build(sequences, self.config.block_size)).logits)

    def load(self) -> GenerativeModel:
        """Load the network and its weights, unless they are loaded. The first step calls this.

        Raises:
            InferenceError: there are no weights, or they do not fit.
        """
        if self._built is None:
            source = self._source()
            arrays = self._arrays
            pairs = source.pairs() if arrays is None else source.fit(checkpoint_of(arrays), Path("the weights"))
            positions = self.config.num_blocks * self.config.block_size
            self._built, self._arrays = GenerativeModel(source, pairs, positions=positions, say=say), None
        return self._built

    def _source(self) -> ModelSource:
        if self._arrays is None and not self.checkpoint:
            raise InferenceError(
                "the model has no weights",
                "name them as load_checkpoint or model.model_config.checkpoint_name_or_path; MindFormers itself loads "
                "a .ckpt, or with load_ckpt_format: safetensors a directory",
            )
        return resolve(self.config.inference_config(self.checkpoint if self._arrays is None else None))


@contextmanager
def _numpy_sampling() -> Iterator[None]:
    """Make MindFormers sample in numpy while this context is active."""
    before = run_using_numpy()
    set_context(postprocess_use_numpy=True)
    try:
        yield
    finally:
        set_context(postprocess_use_numpy=bool(before))


def renamed(own: Class, name: str, architecture: str) -> Class:
    """Make a subclass with the name and the architecture of a family."""
    made: Class = type(name, (own,), {"__doc__": own.__doc__, "architecture": architecture})  # type: ignore[assignment]
    return made


def _plain(value: Any) -> Any:
    """Convert a value from a YAML file; None for objects that MindFormers has made from one."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (str, bool, int, float)) else None
