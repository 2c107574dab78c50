"""Finds the tokens of padded rows: by a mask, by their lengths, or by the pad id at an end.

Knows rows of token ids; knows nothing about models.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from inference.config import GenerationConfig
from inference.errors import InputError
from inference.notices import notice


def unpadded(
    rows: Sequence[list[int]],
    generation: GenerationConfig,
    attention_mask: Any = None,
    valid_length: Any = None,
) -> list[list[int]]:
    """Return the rows without padding.

    Args:
        generation: its pad_token_id is padding at the ends of a row, unless it ends or begins a sequence too.
        attention_mask: for each row 1 for a token and 0 for padding; if given, it alone decides.
        valid_length: for each row its length without padding on the right; if given, it alone decides.

    Raises:
        InputError: the mask or the lengths do not fit the rows.
    """
    if attention_mask is not None:
        masks = _listed(attention_mask, rows, "attention_mask")
        return [_masked(row, mask, number) for number, (row, mask) in enumerate(zip(rows, masks, strict=True), 1)]
    if valid_length is not None:
        lengths = _listed(valid_length, rows, "valid_length")
        return [_cut(row, length, number) for number, (row, length) in enumerate(zip(rows, lengths, strict=True), 1)]
    pad = generation.pad_token_id
    if pad is None or pad in generation.eos_token_id or pad == generation.bos_token_id:
        return list(rows)
    found = [_stripped(row, pad) for row in rows]
    if found != list(rows):
        notice(f"removed pad_token_id {pad} from the ends of rows; an attention_mask says exactly what is padding")
    return found


def _listed(values: Any, rows: Sequence[list[int]], name: str) -> list[Any]:
    """Return one value for each row from a list, an array or a tensor; a single row may give a bare value."""
    for method in ("asnumpy", "tolist"):
        if hasattr(values, method):
            values = getattr(values, method)()
    given = list(values) if isinstance(values, (list, tuple)) else [values]
    if len(rows) == 1 and name == "attention_mask" and given and not isinstance(given[0], (list, tuple)):
        given = [given]
    if len(given) != len(rows):
        raise InputError(f"{name} has {len(given)} rows, and there are {len(rows)} prompts", "give one for each")
    return given


def _masked(row: list[int], mask: Sequence[Any], number: int) -> list[int]:
    if len(mask) != len(row):
        raise InputError(
            f"row {number} has {len(row)} ids and {len(mask)} values of attention_mask", "give one for each"
        )
    return [token for token, is_token in zip(row, mask, strict=True) if is_token]


def _cut(row: list[int], length: Any, number: int) -> list[int]:
    if not 0 < operator.index(length) <= len(row):
        raise InputError(f"valid_length of row {number} is {length}", f"from 1 to {len(row)}, the ids of the row")
    return row[:length]


def _stripped(row: list[int], pad: int) -> list[int]:
    start, end = 0, len(row)
    while end > start and row[end - 1] == pad:
        end -= 1
    while start < end and row[start] == pad:
        start += 1
    return row[start:end]
