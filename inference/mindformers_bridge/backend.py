"""`engine.backend: mindformers`: MindFormers' networks and generate loop behind this project's engine interface.

MindFormers' loop runs a batch until its last row has ended: it still computes rows that have ended, and no row can
join. This limit stays. Unless a row's next token is simply the most likely one, this project's sampler chooses it, so
that every generation setting works and each row samples with its own seed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import shutil
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inference.checkpoint.tensor import StoredTensor
from inference.engine.engine import BaseEngine
from inference.engine.metrics import RunMetrics
from inference.engine.request import FinishReason, Request
from inference.engine.sampler import choose, needs_logits, token_logprob
from inference.errors import InferenceError, InputError
from inference.generation.build import Say
from inference.generation.model import GenerativeModel
from inference.mindformers_bridge import register
from inference.models.runner import LoadTimes
from inference.models.source import ModelSource
from inference.models.weights.loading import Pairs

# MindFormers' defaults that this module depends on.
BLOCK_SIZE, NUM_BLOCKS = 16, 512
# Keys of `engine` that apply only to this project's own networks.
NO_EFFECT = (
    *("kernels", "weight_dtype", "kv_cache_dtype", "kv_cache_memory"),
    *("block_size", "max_batch_tokens", "max_sequences", "prefix_cache", "threads"),
)
# Sections of a config that MindFormers does not have.
OUR_SECTIONS = ("engine", "input", "output", "pipeline", "serve")


class MindFormersModel(GenerativeModel):
    """A MindFormers model, built from the same YAML. On a CPU, where MindFormers' own networks do not run, its code
    builds this project's networks under their names.

    Args: as for `GenerativeModel`; the YAML's `num_blocks` and `block_size` set the size of the KV cache.

    Raises:
        ConfigError: MindFormers does not have the model, or does not support a setting.
        InferenceError: MindFormers cannot build or load it.
    """

    def __init__(
        self,
        source: ModelSource,
        pairs: Pairs | None,
        *,
        positions: int | None = None,
        row: int = 1,
        progress: Callable[[StoredTensor], None] | None = None,
        say: Say,
    ):
        started = time.perf_counter()
        self._set_up(source, say)
        unused = [f"engine.{key}" for key in NO_EFFECT if source.config.origin(f"engine.{key}") != "default"]
        if unused:
            say(f"without effect with engine.backend mindformers: {', '.join(unused)}")
        with _stdout_to_stderr():
            import_quietly()
            if source.config.context.device_target == "CPU":
                register(replace=True)
            self.network = _build(source)
        self.times = LoadTimes(load=time.perf_counter() - started)

    def _new_engine(self, metrics: RunMetrics | None) -> BaseEngine:
        return MindFormersEngine(self.network, self.config.context_length, self.max_sequences, metrics)

    @property
    def num_bytes(self) -> int:
        # On a CPU, the network is one of ours, which has no MindSpore parameters.
        return (
            sum(int(parameter.nbytes) for parameter in self.network.get_parameters()) or self.network.load().num_bytes
        )

    @property
    def max_sequences(self) -> int:
        """Maximum number of rows in a batch: `predict_batch_size`, or the YAML's `batch_size`."""
        config = self.source.config
        return config.predict_batch_size or config.model.model_config.batch_size or 1

    def describe_cache(self) -> str:
        config = self.network.config
        return (
            f"KV cache of MindFormers: {config.num_blocks * config.block_size:,} positions; batches of at most "
            f"{self.max_sequences} rows, each run to the end of its longest"
        )


class MindFormersEngine(BaseEngine):
    """Runs requests in batches through MindFormers' `generate`.

    Args:
        network: a MindFormers model with its weights.
        context_length: context length of the model, tokens.
        max_sequences: maximum number of rows in a batch.
    """

    def __init__(self, network: Any, context_length: int, max_sequences: int, metrics: RunMetrics | None = None):
        config = network.config
        self._block_size, self._num_blocks = config.block_size, config.num_blocks
        # MindFormers' block tables hold whole blocks.
        longest = min(context_length, config.seq_length) // self._block_size * self._block_size
        super().__init__(longest, max_sequences, metrics)
        self.network = network
        self._waiting: deque[Request] = deque()
        self._batch: list[Request] = []
        self._generation: _Generation | None = None

    @property
    def num_running(self) -> int:
        return sum(not request.finished for request in self._batch)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def kv_use(self) -> float:
        return self._blocks(self._batch) / self._num_blocks

    def finish(self, request: Request, reason: FinishReason) -> None:
        if request.finished:
            return
        request.finish(reason)
        self.metrics.finished(request)
        with contextlib.suppress(ValueError):
            self._waiting.remove(request)
        if not self.num_running:
            self._end_batch()

    def close(self) -> None:
        for request in [*self._batch, *self._waiting]:
            self.finish(request, FinishReason.CANCELLED)
        self._end_batch()

    def step(self) -> list[Request]:
        started = time.perf_counter()
        if self._generation is None:
            self._begin_batch()
        assert self._generation is not None
        is_first = not self._generation.has_begun
        try:
            tokens = self._generation.advance()
        except Exception as error:
            self._end_batch()
            raise InferenceError(f"MindFormers cannot generate: {type(error).__name__}: {error}") from error
        running = [(row, token) for row, token in zip(self._batch, tokens, strict=True) if not row.finished]
        chosen = sum(len(row.prompt_ids) for row, _ in running) + 1 if is_first else len(running)
        self.metrics.step(time.perf_counter() - started, chosen, len(running))
        for request, token in running:
            self._append(request, int(token))
        return [request for request, _ in running]

    def _queue(self, request: Request) -> None:
        if self._blocks([request]) > self._num_blocks:
            raise InputError(
                f"request {request.request_id}: prompt and answer need {self._blocks([request])} blocks of KV cache, "
                f"model.model_config.num_blocks is {self._num_blocks}"
            )
        self._waiting.append(request)

    def _blocks(self, rows: Sequence[Request]) -> int:
        """Maximum number of cache blocks of rows: each runs as long as the row with the longest answer."""
        longest = max((row.max_new_tokens for row in rows), default=0)
        lengths = (min(len(row.prompt_ids) + longest, self.context_length) for row in rows)
        return sum(-(-length // self._block_size) for length in lengths)

    def _begin_batch(self) -> None:
        self._batch = []
        while self._waiting and len(self._batch) < self.max_sequences:
            if self._batch and self._blocks([*self._batch, self._waiting[0]]) > self._num_blocks:
                break
            self._batch.append(self._waiting.popleft())
        self._generation = _Generation(self.network, self._batch)

    def _end_batch(self) -> None:
        generation, self._generation, self._batch = self._generation, None, []
        if generation is not None:
            generation.abandon()


class _Generation:
    """A call of MindFormers' `generate` in a thread, paused between tokens.

    This object is the call's streamer: in `put`, the call waits until the next token is requested or the call is
    abandoned.
    """

    def __init__(self, network: Any, rows: Sequence[Request]):
        self.has_begun = False
        self._network, self._rows = network, rows
        self._tokens: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._go_on: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._saw_prompts = False
        self._thread = threading.Thread(target=self._run, name="mindformers", daemon=True)

    def advance(self) -> list[int]:
        """Run the call until each row has its next token.

        Raises:
            Exception: the error that the call raised.
        """
        if self.has_begun:
            self._go_on.put(True)
        else:
            self.has_begun = True
            self._thread.start()
        given = self._tokens.get()
        if isinstance(given, BaseException):
            raise given
        return list(given)

    def abandon(self) -> None:
        """End the call at its current token."""
        if self.has_begun:
            self._go_on.put(False)
            self._thread.join()

    def put(self, value: Any) -> None:
        """Called by `generate`: first with all prompts, then with each row's next token."""
        if not self._saw_prompts:
            self._saw_prompts = True
            return
        self._tokens.put([value] if np.ndim(value) == 0 else value)
        if not self._go_on.get():
            raise _AbandonedError

    def end(self) -> None:
        """Called by `generate` when it ends."""

    def _run(self) -> None:
        failure: BaseException | None = None
        try:
            self._network.generate(self._padded(), streamer=self, **self._settings())
            # The call ends on its own only if it has less room than the request assumed.
            failure = InferenceError("it ended before the answer did")
        except _AbandonedError:
            pass
        except BaseException as error:
            failure = error
        # Clear the cache, as `generate` does when it ends.
        if self._network.block_mgr:
            self._network.block_mgr.clear_cache()
        if failure:
            self._tokens.put(failure)

    @property
    def _pad(self) -> int:
        """A token that no prompt ends with, because MindFormers would take such an ending for padding."""
        last = {row.prompt_ids[-1] for row in self._rows}
        return next(token for token in range(len(last) + 1) if token not in last)

    def _padded(self) -> list[list[int]]:
        width, pad = max(len(row.prompt_ids) for row in self._rows), self._pad
        return [row.prompt_ids + [pad] * (width - len(row.prompt_ids)) for row in self._rows]

    def _settings(self) -> dict[str, Any]:
        """Settings for `generate`: it may stop at tokens that end every row; the engine handles everything else."""
        settings = [row.generation for row in self._rows]
        ends = [set() if given.ignore_eos else set(given.eos_token_id) for given in settings]
        # The batch is set up once, for its last token too: a penalty applies only after the first.
        chosen_here = any(needs_logits(row, ahead=row.max_new_tokens) for row in self._rows)
        return {
            "max_new_tokens": max(row.max_new_tokens for row in self._rows),
            "eos_token_id": sorted(set.intersection(*ends)),
            "pad_token_id": self._pad,
            "do_sample": False,
            "min_length": 0,
            "min_new_tokens": None,
            "repetition_penalty": 1.0,
            "renormalize_logits": False,
            "return_dict_in_generate": False,
            "logits_processor": [self._choose] if chosen_here else None,
        }

    def _choose(self, input_ids: Any, logits: Any) -> Any:
        """Return logits [B, vocabulary] in which the chosen token of each row is the most likely."""
        import mindspore

        rows: np.ndarray = logits.astype(mindspore.float32).asnumpy()
        chosen = np.zeros_like(rows)
        for index, (request, row) in enumerate(zip(self._rows, rows, strict=True)):
            if request.finished:
                continue
            token = choose(row, request)
            chosen[index, token] = 1
            if request.generation.logprobs is not None:
                request.logprobs.append(token_logprob(row, token, request.generation.logprobs))
        return mindspore.Tensor(chosen)


class _AbandonedError(BaseException):
    """The call was abandoned. Not an Exception, so that no handler on the way treats it as a failure."""


def import_quietly() -> None:
    """Import mindformers (6 to 10 seconds) without its log, which would go to standard output and `./output`."""
    if "mindformers" in sys.modules:
        return
    given = os.environ.get("LOCAL_DEFAULT_PATH")
    scratch = tempfile.mkdtemp(prefix="mindformers.")
    os.environ["LOCAL_DEFAULT_PATH"] = scratch
    try:
        # Its logger is named after the directory of its log files.
        logger = logging.getLogger(f"mindformers{Path(scratch) / 'log'}")
        logger.addFilter(lambda record: record.levelno >= logging.ERROR)
        import mindformers  # noqa: F401
    finally:
        for handler in [handler for handler in logger.handlers if isinstance(handler, logging.FileHandler)]:
            logger.removeHandler(handler)
            handler.close()
        shutil.rmtree(scratch, ignore_errors=True)
        if given is not None:
            os.environ["LOCAL_DEFAULT_PATH"] = given


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Send everything that Python and MindSpore's libraries print to stderr: standard output is for answers."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _build(source: ModelSource) -> Any:
    """Build MindFormers' model with its weights, as its own `Trainer.predict` does."""
    from mindformers import AutoModel, MindFormerConfig
    from mindformers.core.context import build_context, build_mf_context
    from mindformers.tools.register.template import ConfigTemplate
    from mindformers.trainer.utils import transform_and_load_checkpoint
    from mindspore.train import Model

    from inference.mindformers_bridge.network import InferenceForCausalLM

    settings = mindformers_settings(source)
    try:
        ConfigTemplate.apply_template(settings)
        config = MindFormerConfig(**settings)
        # On a CPU, only MindFormers' own switches need to be set up.
        (build_mf_context if config.context.device_target == "CPU" else build_context)(config)
        network = AutoModel.from_config(config)
        network.set_train(False)
        if config.use_legacy:
            transform_and_load_checkpoint(config, Model(network), network, None, do_predict=True)
        else:
            network.load_weights(config.load_checkpoint)
        if isinstance(network, InferenceForCausalLM):
            network.load()
    except InferenceError:
        raise
    except Exception as error:
        message = f"MindFormers cannot build {source.name}: {type(error).__name__}: {error}"
        raise InferenceError(message, "try engine.backend native") from error
    return network


def mindformers_settings(source: ModelSource) -> dict[str, Any]:
    """The keys of the YAML and the command line as given, with the paths of the files that were found."""
    settings = source.config.as_given()
    for section in OUR_SECTIONS:
        settings.pop(section, None)
    model = settings.setdefault("model", {}).setdefault("model_config", {})
    # The older style names a config class; the newer one takes it from config.json.
    settings.setdefault("use_legacy", "type" in model)
    settings["run_mode"] = "predict"
    # MindFormers has a different default.
    settings["context"] = {**(settings.get("context") or {}), "device_target": source.config.context.device_target}
    # Choosing tokens needs the logits of all rows at once.
    settings["postprocess_use_numpy"] = False
    settings.setdefault("parallel_config", {})
    model["checkpoint_name_or_path"] = None
    for name, value in (
        ("seq_length", source.model.context_length),
        ("block_size", BLOCK_SIZE),
        ("num_blocks", NUM_BLOCKS),
    ):
        if model.get(name) is None:
            model[name] = value
    if source.directory is not None:
        settings["pretrained_model_dir"] = str(source.directory)
    checkpoint = source.checkpoint
    assert checkpoint is not None
    settings["load_checkpoint"] = str(checkpoint)
    settings["checkpoint"] = {**(settings.get("checkpoint") or {}), "load_path": str(checkpoint)}
    has_ckpt = checkpoint.suffix == ".ckpt" or (checkpoint.is_dir() and any(checkpoint.glob("*.ckpt")))
    settings["load_ckpt_format"] = "ckpt" if has_ckpt else "safetensors"
    return settings
