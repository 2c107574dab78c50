"""Answers `/v1/embeddings`, in OpenAI's formats: lists of numbers, or base64 of little-endian float32.

Knows these formats and how inputs are encoded; knows nothing about HTTP or how vectors are computed.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from inference.errors import did_you_mean
from inference.generation.passes import PassRow, Pooling
from inference.serve.answers import usage_of
from inference.serve.bodies import adapter_of, texts_or_ids
from inference.serve.errors import RequestError
from inference.serve.service import Service

KEYS = ("input", "model", "encoding_format", "dimensions", "pooling", "user")
FORMATS = ("float", "base64")
POOLINGS = ("mean", "last")


@dataclass(frozen=True)
class EmbeddingsAsk:
    """A parsed request for embeddings.

    Args:
        model: the model's name in the client's request.
        dimensions: keep only this many numbers of each vector; None for all.
        is_base64: send vectors as base64.
    """

    model: str
    rows: tuple[PassRow, ...]
    pooling: Pooling
    dimensions: int | None
    is_base64: bool


def read_embeddings(service: Service, body: Mapping[str, Any]) -> EmbeddingsAsk:
    """Parses a body and encodes its inputs.

    Raises:
        RequestError: a key is unknown, or a value is invalid.
        InputError: an input cannot be encoded.
    """
    for key in body:
        if key not in KEYS:
            hint = did_you_mean(key, KEYS) or f"accepted: {', '.join(KEYS)}"
            raise RequestError(400, f"unknown key '{key[:200]}'; {hint}", key[:200], "unknown_parameter")
    model = body.get("model")
    if not isinstance(model, (str, type(None))):
        raise RequestError(400, "model must be text", "model")
    adapter = adapter_of(model, service.models)
    number = service.encoder.adapters[adapter] if adapter else 0
    form = _one_of(body, "encoding_format", FORMATS, "float")
    pooling = _one_of(body, "pooling", POOLINGS, service.settings.pooling)
    dimensions, size = body.get("dimensions"), service.model.config.hidden_size
    if dimensions is not None and (type(dimensions) is not int or not 1 <= dimensions <= size):
        raise RequestError(400, f"dimensions must be an integer from 1 to {size}", "dimensions")
    inputs = texts_or_ids(body, "input", service.settings.max_prompts)
    rows = tuple(PassRow(_ids(service, value, index), number) for index, value in enumerate(inputs))
    return EmbeddingsAsk(model or service.names[0], rows, pooling, dimensions, form == "base64")  # type: ignore[arg-type]


def embeddings_answer(ask: EmbeddingsAsk, vectors: np.ndarray) -> dict[str, Any]:
    """Returns the response's body for vectors of length 1, float32 [inputs, hidden]."""
    if ask.dimensions is not None:
        vectors = vectors[:, : ask.dimensions]
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    count = sum(len(row.ids) for row in ask.rows)
    items = [
        {"object": "embedding", "index": index, "embedding": _as_base64(vector) if ask.is_base64 else vector.tolist()}
        for index, vector in enumerate(vectors)
    ]
    usage = {key: value for key, value in usage_of(count, 0, 0).items() if key in ("prompt_tokens", "total_tokens")}
    return {"object": "list", "data": items, "model": ask.model, "usage": usage}


def _ids(service: Service, value: str | Sequence[int], index: int) -> list[int]:
    ids = service.tokenizer.encode(value) if isinstance(value, str) else list(value)
    size, length = service.model.config.vocab_size, service.model.config.context_length
    outside = [token for token in ids if not 0 <= token < size]
    if outside:
        raise RequestError(400, f"input {index}: token id {outside[0]} is outside the vocabulary of {size}", "input")
    if not 0 < len(ids) <= length:
        raise RequestError(400, f"input {index} has {len(ids)} tokens; the model reads from 1 to {length}", "input")
    return ids


def _one_of(body: Mapping[str, Any], key: str, accepted: Sequence[str], default: str) -> str:
    value = body.get(key)
    if value is None:
        return default
    if value not in accepted:
        raise RequestError(400, f"{key} must be one of {', '.join(accepted)}", key)
    return str(value)


def _as_base64(vector: np.ndarray) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
