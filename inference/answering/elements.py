"""Turns elements of a pipeline into prompts, and measures them in bytes and tokens.

Knows rows, and the shape of Beam's PredictionResult; knows nothing about batches, loaded models, or Beam itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inference.config import InferenceConfig
from inference.errors import InferenceError, InputError
from inference.generation.model import make_encoder
from inference.generation.text import Encoder
from inference.inputs.prompts import Prompt, prompt_from_mapping, prompt_of
from inference.models.source import resolve

Example = str | Sequence[int] | Mapping[str, Any] | Prompt
# A token id is an int32 by the time the model sees it.
ID_BYTES = 4


@dataclass(frozen=True)
class Unusable:
    """An element that cannot be made into a prompt, and why."""

    reason: str


def prepared(example: Any, prepare: Callable[[Any], Any] | None) -> Any:
    """Applies a user's function to an element; `Unusable` if it raises. Without a function, returns the element."""
    if prepare is None:
        return example
    try:
        return prepare(example)
    except Exception as error:  # an error of the user's function belongs to this row alone
        return Unusable(f"prepare: {type(error).__name__}: {error}")


def is_result(example: Any) -> bool:
    """Returns whether an element is a PredictionResult, the output of another RunInference."""
    return isinstance(example, tuple) and hasattr(example, "inference") and hasattr(example, "example")


def prompt_from(example: Any) -> Prompt:
    """Returns the prompt of an element.

    An element is a text, token ids, or a mapping as in a line of a .jsonl file: `prompt` or `messages`, optionally
    `custom_id` and generation settings; a row of OpenAI's batch format works too. If it is a PredictionResult, the
    prompt is that result's answer.

    Raises:
        RowError: there is no prompt, or a setting is unknown or impossible.
        InputError: the result has no answer.
    """
    if isinstance(example, Prompt):
        return example
    if isinstance(example, Unusable):
        raise InputError(example.reason)
    if is_result(example):
        return _answer_as_prompt(example.inference)
    if isinstance(example, Mapping):
        name = example.get("custom_id")
        where = "the row" if name is None else f"row {name}"
        row = dict(example)
        if _is_array(row.get("prompt")):
            row["prompt"] = _listed(row["prompt"])
        return prompt_from_mapping(row, where, "")
    return prompt_of(_listed(example) if _is_array(example) else example, "the row", "")


def _answer_as_prompt(inference: Any) -> Prompt:
    """Makes a prompt from the answer of another model."""
    if not isinstance(inference, Mapping) or "finish_reason" not in inference:
        return prompt_from(inference)
    if inference.get("error") is not None:
        raise InputError(f"the model before has no answer: {inference['error'].get('message')}")
    return Prompt(str(inference.get("custom_id") or ""), "the row", text=inference["text"])


def num_bytes(example: Any) -> int | None:
    """Returns the bytes of an element: UTF-8 for texts, 4 per token id, JSON for mappings; None for anything else."""
    if is_result(example):
        inference = example.inference
        return num_bytes(inference["text"] if isinstance(inference, Mapping) and "text" in inference else inference)
    if isinstance(example, Prompt):
        messages = example.messages and {"messages": list(example.messages)}
        return num_bytes(messages or example.token_ids or example.text)
    if isinstance(example, str):
        return len(example.encode("utf-8", "surrogatepass"))
    if isinstance(example, Mapping):
        try:
            return len(json.dumps(dict(example), ensure_ascii=False).encode("utf-8", "surrogatepass"))
        except TypeError:
            return None
    if _is_array(example) and all(isinstance(token, int) for token in _listed(example)):
        return ID_BYTES * len(example)
    return None


class TokenLength:
    """Counts the tokens of an element's prompt, for batches limited by tokens and for length buckets.

    Each process that counts loads the tokenizer, without weights. A row that cannot be encoded counts as 1; it gets its
    error when it is answered. The key of a keyed element is not counted.

    Args:
        config: of the model whose tokenizer counts.
        prepare: converts an element to a handler's example.
    """

    def __init__(self, config: InferenceConfig, prepare: Callable[[Any], Any] | None = None):
        self._config, self._prepare = config, prepare
        self._encoder: Encoder | None = None

    def __call__(self, element: Any) -> int:
        """Returns the number of tokens, at least 1."""
        if self._encoder is None:
            source = resolve(self._config)
            self._encoder = make_encoder(source, source.tokenizer())
        try:
            return len(self._encoder.encode(0, prompt_from(prepared(without_key(element), self._prepare))).ids)
        except InferenceError:
            return 1

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_encoder": None}


def without_key(element: Any) -> Any:
    """Returns the example of a keyed element, a pair whose second part is an example; anything else unchanged."""
    if (
        isinstance(element, tuple)
        and not is_result(element)
        and len(element) == 2
        and not hasattr(element[1], "__index__")
    ):
        return element[1]
    return element


def _is_array(value: Any) -> bool:
    return hasattr(value, "__len__") and hasattr(value, "__getitem__") and not isinstance(value, (str, bytes, Mapping))


def _listed(ids: Any) -> list[Any]:
    """Lists the items of a list, tuple or array; converts numpy scalars to Python's."""
    items = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    return [item.item() if hasattr(item, "item") and not hasattr(item, "__len__") else item for item in items]
