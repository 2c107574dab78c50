"""The ranges of a model's sizes, and a check of their combination before anything of that size is allocated.

The bounds are far above every published model. They prevent a damaged or hostile config.json from causing work: tables
of layers, heads or experts are built only after their size has been checked.
"""

from __future__ import annotations

from typing import Protocol

from inference.errors import ConfigError
from inference.files.values import integer, number

# The kernels read eight values of a row at a time.
HIDDEN = integer(8, 1 << 24)
WIDTH = integer(1, 1 << 24)
HEAD = integer(1, 1 << 14)
HEADS = integer(1, 1 << 16)
LAYERS = integer(1, 10_000)
EXPERTS = integer(1, 1 << 16)
SHARED_EXPERTS = integer(0, 1 << 10)
RATIO = integer(1, 1 << 10)
MULTIPLIER = number(1e-3, 1e3, "a number from 0.001 to 1000")
# Base and factor of rotary embedding, whose combination still fits into float32.
THETA = number(2.0, 1e15, "a number from 2 to 10^15")
FACTOR = number(1e-6, 1e6, "a positive number of at most 10^6")
# Maximum number of experts in all layers together, and of weights.
MOST_EXPERTS = 1 << 18
MOST_PARAMETERS = 10**14


class Sizes(Protocol):
    """The sizes in a model's config."""

    @property
    def num_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def num_parameters(self) -> int: ...


def check_sizes(model: Sizes, where: str) -> None:
    """Checks the combination of sizes that are each in range.

    Raises:
        ConfigError: attention is too wide, or the model has more weights than any machine can hold.
    """
    if model.num_heads * model.head_dim > 1 << 24:
        raise ConfigError(
            f"{where}: {model.num_heads} heads of {model.head_dim} are too wide",
            "check num_attention_heads and head_dim",
        )
    if model.num_parameters > MOST_PARAMETERS:
        raise ConfigError(
            f"{where}: the sizes add up to {model.num_parameters:.1e} parameters", "check the sizes in config.json"
        )
