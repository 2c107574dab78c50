"""Elements of a pipeline as prompts: what may stand in a row, how many bytes it has, and how many tokens.

Knows rows; knows nothing about batches, models in memory, or Beam.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from inference.config import InferenceConfig
from inference.errors import InferenceError
from inference.generation.model import make_encoder
from inference.generation.text import Encoder
from inference.inputs.prompts import Prompt, prompt_from_mapping, prompt_of
from inference.models.source import resolve

Example = str | Sequence[int] | Mapping[str, Any] | Prompt
# A token id is an int32 by the time the model sees it.
ID_BYTES = 4


def prompt_from(example: Any) -> Prompt:
    """The prompt in an element: a text, token ids, or a mapping as in a line of a .jsonl file (`prompt` or
    `messages`, and if wanted `custom_id` and settings of its own; also a row of OpenAI's batch format).

    Raises:
        RowError: there is none, or a setting that is unknown or impossible.
    """
    if isinstance(example, Prompt):
        return example
    if isinstance(example, Mapping):
        name = example.get("custom_id")
        where = "the row" if name is None else f"row {name}"
        row = dict(example)
        if _is_array(row.get("prompt")):
            row["prompt"] = _listed(row["prompt"])
        return prompt_from_mapping(row, where, "")
    return prompt_of(_listed(example) if _is_array(example) else example, "the row", "")


def num_bytes(example: Any) -> int | None:
    """Bytes of what an element says: UTF-8 of texts, 4 a token id, JSON of mappings; None for anything else."""
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
    """Counts the tokens of an element's prompt, for batches by tokens and for buckets by length.

    The tokenizer is loaded where the counting is done, and no weights with it. A row that cannot be encoded counts
    as 1: what is wrong with it is said when it is answered. The key of a keyed element does not count.

    Args:
        config: of the model whose tokenizer counts.
    """

    def __init__(self, config: InferenceConfig):
        self._config = config
        self._encoder: Encoder | None = None

    def __call__(self, element: Any) -> int:
        """Tokens, at least 1."""
        if self._encoder is None:
            source = resolve(self._config)
            self._encoder = make_encoder(source, source.tokenizer())
        try:
            return len(self._encoder.encode(0, prompt_from(without_key(element))).ids)
        except InferenceError:
            return 1

    def __getstate__(self) -> dict[str, Any]:
        return {"_config": self._config, "_encoder": None}


def without_key(element: Any) -> Any:
    """The example of a keyed element, a pair whose second part is an example; anything else as it is."""
    if isinstance(element, tuple) and len(element) == 2 and not hasattr(element[1], "__index__"):
        return element[1]
    return element


def _is_array(value: Any) -> bool:
    return hasattr(value, "__len__") and hasattr(value, "__getitem__") and not isinstance(value, (str, bytes, Mapping))


def _listed(ids: Any) -> list[Any]:
    """The items of a list, tuple or array, with numpy's integers as Python's."""
    items = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    return [item.item() if hasattr(item, "item") and not hasattr(item, "__len__") else item for item in items]
