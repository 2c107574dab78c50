"""The types of settings beyond Python's own: token ids, byte counts, lists that may be written as one item.

Knows single values; knows nothing about sections or files. Each validator says what it accepts; `problems` builds the
message that the user reads.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator

from inference.files.values import COUNT, LARGEST, LARGEST_FLOAT, TOKEN_ID

Seed = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1, le=LARGEST)]
# Of weights, or a limit that files set to a number beyond every length.
LargeCount = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0, le=LARGEST)]
Positive = Annotated[float, Field(gt=0, le=LARGEST_FLOAT)]
Probability = Annotated[float, Field(ge=0, le=1)]
Epsilon = Annotated[float, Field(gt=0, lt=1)]
RotaryBase = Annotated[float, Field(ge=2, le=1e15)]
Free = dict[str, Any]

_UNITS = {"": 1, "b": 1}
_UNITS |= {f"{prefix}{suffix}": 1000 ** (i + 1) for i, prefix in enumerate("kmgt") for suffix in ("", "b")}
_UNITS |= {f"{prefix}ib": 1024 ** (i + 1) for i, prefix in enumerate("kmgt")}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)\Z", re.IGNORECASE)


class Section(BaseModel):
    """A frozen section of the config that rejects unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    def given(self) -> dict[str, Any]:
        """Returns the settings that were set, without nulls."""
        return {
            name: getattr(self, name)
            for name in type(self).model_fields
            if name in self.model_fields_set and getattr(self, name) is not None
        }


def _bytes(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    match = _SIZE.match(value.strip()) if isinstance(value, str) else None
    if not match or match[2].lower() not in _UNITS:
        raise ValueError("must be a number of bytes, or a size such as 512MiB or 2GiB")
    count = int(float(match[1]) * _UNITS[match[2].lower()])
    if count < 1:
        raise ValueError("must be at least one byte")
    return count


def _token_id(value: Any) -> int | None:
    # Configs of old checkpoints use -1 for "none".
    if value is None or (type(value) is int and value == -1):
        return None
    if not TOKEN_ID.takes(value):
        raise ValueError("must be a token id (an integer from 0 to 2^31 - 1)")
    return int(value)


def _token_ids(value: Any) -> tuple[int, ...] | None:
    items = value if isinstance(value, (list, tuple)) else () if value is None or value == -1 else (value,)
    if not all(TOKEN_ID.takes(item) for item in items):
        raise ValueError("must be a token id or a list of token ids (integers from 0 to 2^31 - 1)")
    return tuple(items)


def _token_sequences(value: Any) -> tuple[tuple[int, ...], ...]:
    items = value if isinstance(value, (list, tuple)) else None
    if items is None or not all(isinstance(item, (list, tuple)) and item for item in items):
        raise ValueError("must be a list of lists of token ids, such as [[5], [17, 4]]")
    return tuple(_token_ids(item) or () for item in items)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _number_of(key: Any) -> Any:
    """Converts a key of digits to an integer, because JSON allows only text keys."""
    return int(key) if isinstance(key, str) and key.isdecimal() else key


def _logit_bias(value: Any) -> dict[int, float]:
    items = value.items() if isinstance(value, dict) else [_pair(item) for item in _texts(value)]
    pairs: list[tuple[Any, Any]] = [(_number_of(key), number) for key, number in items]
    if not all(TOKEN_ID.takes(token) and _is_number(number) for token, number in pairs):
        raise ValueError("must be token ids and numbers, such as 42: -5 or 42=-5")
    return {token: float(number) for token, number in pairs}


def _sequence_bias(value: Any) -> tuple[tuple[tuple[int, ...], float], ...]:
    items = value.items() if isinstance(value, dict) else value
    try:
        pairs = [(_token_sequences([ids])[0], bias) for ids, bias in items]
    except (TypeError, ValueError):
        pairs = [((), None)]
    if not all(_is_number(bias) for _, bias in pairs):
        raise ValueError("must be lists of token ids, each with a number, such as [[[5, 17], -2.5]]")
    return tuple((ids, float(bias)) for ids, bias in pairs)


def _length_penalty(value: Any) -> tuple[int, float] | None:
    if value is None:
        return None
    fits = isinstance(value, (list, tuple)) and len(value) == 2 and COUNT.takes(value[0]) and _is_number(value[1])
    if not fits or value[1] <= 0:
        raise ValueError("must be a number of tokens and a factor above 0, such as [50, 1.05]")
    return value[0], float(value[1])


def _texts(value: Any) -> tuple[str, ...]:
    items = value if isinstance(value, (list, tuple)) else () if value is None else (value,)
    if not all(isinstance(item, str) and item for item in items):
        raise ValueError("must be text or a list of texts, none of them empty")
    return tuple(items)


def _scores(value: Any) -> dict[str, float]:
    items = list(value.items()) if isinstance(value, dict) else [_pair(item) for item in _texts(value)]
    if not all(isinstance(name, str) and type(score) in (int, float) for name, score in items):
        raise ValueError("must be scores and numbers, such as exact_match: 0.9 or exact_match=0.9")
    return {name: float(score) for name, score in items}


def _pair(text: str) -> tuple[str, Any]:
    name, _, number = text.partition("=")
    try:
        return name.strip(), float(number)
    except ValueError:
        return name, None


def _named_paths(value: Any) -> dict[str, str]:
    items = value.items() if isinstance(value, dict) else [item.partition("=")[::2] for item in _texts(value)]
    if not all(isinstance(part, str) and part for item in items for part in item):
        raise ValueError("must be names and paths, such as support: ./support_lora or support=./support_lora")
    return dict(items)


def _empty_is_none(value: Any) -> Any:
    return None if value == "" else value


def one_of(accepted: Iterable[tuple[Any, Any]], wording: str) -> Callable[[Any], Any]:
    """Makes a validator that maps each accepted spelling to its meaning and rejects anything else; True is not 1."""
    table = tuple(accepted)

    def check(value: Any) -> Any:
        for spelling, meaning in table:
            if type(value) is type(spelling) and value == spelling:
                return meaning
        raise ValueError(f"must be {wording}")

    return check


def only(*accepted: Any) -> PlainValidator:
    """Makes a validator for a setting that is not supported yet: accepts only the values that change nothing."""
    wording = " or ".join(str(value).lower() if isinstance(value, bool) else str(value) for value in accepted)

    def check(value: Any) -> Any:
        if not any(value == neutral and isinstance(value, bool) == isinstance(neutral, bool) for neutral in accepted):
            raise ValueError(f"is not supported yet except as {wording}")
        return value

    return PlainValidator(check)


# Spelling in a config -> name in the schema.
_SPELLINGS = {
    "fp32": "float32",
    "f32": "float32",
    "fp16": "float16",
    "f16": "float16",
    "bf16": "bfloat16",
    "cpu": "CPU",
    "gpu": "GPU",
    "ascend": "Ascend",
    "npu": "Ascend",
}


def _usual_spelling(value: Any) -> Any:
    return _SPELLINGS.get(value.lower(), value) if isinstance(value, str) else value


Spelling = BeforeValidator(_usual_spelling)
Dtype = Annotated[Literal["float32", "float16", "bfloat16", "int8"], Spelling]
Bytes = Annotated[int, PlainValidator(_bytes)]
TokenId = Annotated[int | None, PlainValidator(_token_id)]
TokenIds = Annotated[tuple[int, ...], PlainValidator(_token_ids)]
TokenSequences = Annotated[tuple[tuple[int, ...], ...], PlainValidator(_token_sequences)]
LogitBias = Annotated[dict[int, float], PlainValidator(_logit_bias)]
SequenceBias = Annotated[tuple[tuple[tuple[int, ...], float], ...], PlainValidator(_sequence_bias)]
LengthPenalty = Annotated[tuple[int, float], PlainValidator(_length_penalty)]
Texts = Annotated[tuple[str, ...], PlainValidator(_texts)]
Scores = Annotated[dict[str, float], PlainValidator(_scores)]
NamedPaths = Annotated[dict[str, str], PlainValidator(_named_paths)]
OptionalText = Annotated[str | None, BeforeValidator(_empty_is_none)]
