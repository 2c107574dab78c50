"""Everything that determines the text of an answer: the settings, and digests of checkpoint, tokenizer and input.

A job is resumed only if all of this is unchanged. Settings that affect speed alone (threads, batch sizes, memory,
ranks) are left out.
Knows configs and checkpoints; never imports mindspore.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from inference.checkpoint.tensor import StoredTensor
from inference.config import GenerationConfig
from inference.inputs import RowStream
from inference.models.source import ModelSource
from inference.models.weights.loading import Pairs
from inference.models.weights.lora import Adapter
from inference.tokenizer import Tokenizer

ENGINE_KEYS = ("backend", "kernels", "qkv_layout", "weight_dtype", "kv_cache_dtype", "truncate")
# Bytes read from the middle of each tensor: reading all of a large checkpoint takes minutes.
SAMPLE = 4096
# Number of tokens whose bytes are hashed, and a text that most tokenizers split differently.
TOKENS = 4096
TEXT = "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. 日本語 🙂 x += 1234567890\n\t"
# Maximum number of bytes read from a file's first line.
HEAD = 64 << 10


def identity_of(
    source: ModelSource, pairs: Pairs | None, tokenizer: Tokenizer, generation: GenerationConfig, rows: RowStream
) -> dict[str, Any]:
    """The identity of a job: dotted keys with JSON values."""
    return {
        **model_identity(source, pairs, tokenizer, generation),
        **{f"input.{key}": value for key, value in source.config.input.model_dump(mode="json").items()},
        **{f"predict_data.{i}": value for i, value in enumerate(input_digests(rows.inputs))},
    }


def model_identity(
    source: ModelSource, pairs: Pairs | None, tokenizer: Tokenizer, generation: GenerationConfig
) -> dict[str, Any]:
    """The part of the identity that does not depend on the input."""
    config = source.config
    random = f"random, seed {config.seed or 0}"
    return {
        "model": blake2b(repr(sorted(asdict(source.model).items())).encode(), digest_size=16).hexdigest(),
        "checkpoint": random if pairs is None else tensors_digest(checkpoint_tensors(source, pairs)),
        **adapter_identity(source),
        "tokenizer": tokenizer_digest(tokenizer),
        "device_target": config.context.device_target,
        "chat": config.processor.chat,
        **{f"generation.{key}": value for key, value in generation},
        **{f"engine.{key}": getattr(config.engine, key) for key in ENGINE_KEYS},
    }


def checkpoint_tensors(source: ModelSource, pairs: Pairs) -> Iterator[StoredTensor]:
    """The tensors of the whole checkpoint, however many ranks share the model.

    Args:
        pairs: the pairs of one rank.
    """
    if source.ranks == 1:
        whole = [pairs]
    elif source.is_split:
        whole = [source.pairs(rank) or [] for rank in range(source.ranks)]
    else:
        whole = [replace(source, ranks=1).pairs() or []]
    return (tensor for part in whole for tensor, _ in part)


def adapter_identity(source: ModelSource) -> dict[str, Any]:
    """The part of the identity that describes adapters; empty if there are none."""
    if not source.adapters.all:
        return {}
    config = source.config
    return {
        **{f"adapters.{adapter.name}": adapter_digest(adapter) for adapter in source.adapters.all},
        "adapter_id": list(config.adapter_id or ()),
        "engine.merge_adapter": config.engine.merge_adapter,
    }


def adapter_digest(adapter: Adapter) -> str:
    """Digest of an adapter: its scales, and its tensors as in `tensors_digest`."""
    scales = sorted((name, part.scale) for name, part in adapter.parts.items())
    return f"{_short(repr(scales).encode())} {tensors_digest(adapter.tensors)}"


def tensors_digest(tensors: Iterable[StoredTensor]) -> str:
    """Digest of every tensor's name, dtype, shape and a sample of its bytes; independent of file names and offsets."""
    digest = blake2b(digest_size=16)
    files: dict[Path, int] = {}
    try:
        for tensor in sorted(tensors, key=lambda tensor: tensor.name):
            digest.update(f"{tensor.name} {tensor.dtype} {tensor.shape}\n".encode())
            for segment in tensor.segments:
                if segment.path not in files:
                    files[segment.path] = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
                middle = max(segment.size - SAMPLE, 0) // 2
                digest.update(os.pread(files[segment.path], min(SAMPLE, segment.size), segment.offset + middle))
    finally:
        for fd in files.values():
            os.close(fd)
    return digest.hexdigest()


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """Digest of a tokenizer: its settings and templates, tokens sampled from its vocabulary, and an encoded text."""
    digest = blake2b(repr(tokenizer.config).encode("utf-8", "replace"), digest_size=16)
    digest.update(f"{len(tokenizer)} {tokenizer.encode(TEXT)}".encode())
    for token in range(0, len(tokenizer), max(len(tokenizer) // TOKENS, 1)):
        digest.update(tokenizer.token_bytes(token) + b"\n")
    return digest.hexdigest()


def input_digests(inputs: Iterable[tuple[str, str | None]]) -> list[str]:
    """Digest of each value: all of a prompt, but only the first line of a file, since rows may have been added.
    Standard input has no digest.
    """
    digests = []
    for value, form in inputs:
        path = Path(value)
        if form is None:
            digests.append(_short(value.encode("utf-8", "replace")))
        elif path.is_file():
            with path.open("rb") as file:
                first = file.readline(HEAD).rstrip(b"\r\n")
            digests.append(f"{form} {_short(first)}")
        else:
            digests.append(form)
    return digests


def _short(data: bytes) -> str:
    return blake2b(data, digest_size=8).hexdigest()
