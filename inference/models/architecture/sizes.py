"""The ranges of a model's sizes, and how they are checked against each other before anything of that size is made.

The bounds lie far above every published model. They exist so that a damaged or hostile config.json costs no work: a
table of layers, heads or experts is only as long as its size says once the size has been checked.
"""

from __future__ import annotations

from typing import Protocol

from inference.errors import ConfigError
from inference.files.values import integer, number

# The kernels read eight numbers of a row at a time.
HIDDEN = integer(8, 1 << 24)
WIDTH = integer(1, 1 << 24)
HEAD = integer(1, 1 << 14)
HEADS = integer(1, 1 << 16)
LAYERS = integer(1, 10_000)
EXPERTS = integer(1, 1 << 16)
SHARED_EXPERTS = integer(0, 1 << 10)
RATIO = integer(1, 1 << 10)
MULTIPLIER = number(1e-3, 1e3, "a number from 0.001 to 1000")
# Of a rotary embedding; what scaling makes of the two still fits into float32.
THETA = number(2.0, 1e15, "a number from 2 to 10^15")
FACTOR = number(1e-6, 1e6, "a positive number of at most 10^6")
# Experts of all layers together, and weights.
MOST_EXPERTS = 1 << 18
MOST_PARAMETERS = 10**14


class Sizes(Protocol):
    """What a model's config says of its sizes."""

    @property
    def num_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def num_parameters(self) -> int: ...


def check_sizes(model: Sizes, where: str) -> None:
    """Checks sizes that are right one by one against what they make together.

    Raises:
        ConfigError: attention is too wide, or the model has more weights than any machine.
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
