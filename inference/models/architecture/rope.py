"""Rotary position embedding: the angle per position of each rotated pair, and its scaling for longer contexts.

Knows only formulas. Frequencies are fixed when a model is loaded. If a formula depends on the length of the sequence
(dynamic NTK, LongRoPE), it uses the longest length that the model runs with. A token's result then depends neither on
its neighbors in a batch nor on how a prompt is chunked, and cached keys stay valid as a sequence grows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding: its base, and how its frequencies are scaled.

    Args:
        theta: the base.
        kind: one of ROPE_KINDS.
        factor: ratio of the scaled context to the original one.
        low_freq_factor, high_freq_factor: Llama 3: a frequency with fewer turns than the first within the original
            context is divided; one with more than the second is kept.
        original_max_positions: the context that the model was first trained with.
        attention_factor: factor of cosine and sine (YaRN, LongRoPE).
        beta_fast, beta_slow: YaRN: number of turns above which a frequency is kept, and below which it is divided.
        truncate: YaRN: round the boundaries between these outward.
        short_factors, long_factors: LongRoPE: a divisor of each frequency, for contexts up to the original length and
            for longer ones.
        length: the longest sequence that the model runs with, for the kinds that depend on it; 0 for the others.
    """

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    length: int = 0

    def inverse_frequencies(self, size: int) -> np.ndarray:
        """Returns the angle per position of each of `size` / 2 rotated pairs, float32, in radians.

        Source: RoFormer (Su et al. 2021), eq. 15, scaled by the function in ROPE_KINDS.
        """
        return ROPE_KINDS[self.kind](self, size).astype(np.float32)


# For a layer whose queries and keys are not rotated.
NO_ROPE = RopeConfig(theta=math.inf)


def _frequencies(theta: float, size: int) -> np.ndarray:
    exponents = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    return (1.0 / np.float32(theta) ** exponents).astype(np.float32)


def _unscaled(rope: RopeConfig, size: int) -> np.ndarray:
    return _frequencies(rope.theta, size)


def _linear(rope: RopeConfig, size: int) -> np.ndarray:
    """Position interpolation (Chen et al. 2023)."""
    return _frequencies(rope.theta, size) / np.float32(rope.factor)


def _ntk(rope: RopeConfig, size: int) -> np.ndarray:
    """NTK-aware scaling (bloc97 2023): the new base stretches the longest wave by `factor` and keeps the shortest."""
    return _frequencies(rope.theta * rope.factor ** (size / (size - 2)), size)


def _dynamic(rope: RopeConfig, size: int) -> np.ndarray:
    """Dynamic NTK (emozilla 2023): stretch as much as the length needs; not at all up to the original context."""
    length = max(rope.length, rope.original_max_positions)
    stretch = rope.factor * length / rope.original_max_positions - (rope.factor - 1)
    return _frequencies(rope.theta * stretch ** (size / (size - 2)), size)


def _llama3(rope: RopeConfig, size: int) -> np.ndarray:
    """Llama 3.1: interpolate long wavelengths, keep short ones, and blend those between."""
    frequencies = _frequencies(rope.theta, size)
    wavelengths = 2 * math.pi / frequencies
    turns = rope.original_max_positions / wavelengths
    blend = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blend = np.clip(blend, 0.0, 1.0)
    return (1 - blend) * frequencies / rope.factor + blend * frequencies


def _yarn(rope: RopeConfig, size: int) -> np.ndarray:
    """YaRN (Peng et al. 2023), eq. 17 to 23: interpolate by a pair's number of turns within the original context."""

    def pair_that_turns(times: float) -> float:
        turned = rope.original_max_positions / (times * 2 * math.pi)
        return size * math.log(turned) / (2 * math.log(rope.theta))

    low, high = pair_that_turns(rope.beta_fast), pair_that_turns(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    ramp = (np.arange(size // 2, dtype=np.float32) - low) / max(high - low, 0.001)
    blend = np.clip(ramp, 0.0, 1.0)
    frequencies = _frequencies(rope.theta, size)
    return frequencies / rope.factor * blend + frequencies * (1 - blend)


def _longrope(rope: RopeConfig, size: int) -> np.ndarray:
    """LongRoPE (Ding et al. 2024): divide each frequency by a divisor found by search."""
    is_long = rope.length > rope.original_max_positions
    divisors = np.array(rope.long_factors if is_long else rope.short_factors, np.float32)
    return _frequencies(rope.theta, size) / divisors


ROPE_KINDS: dict[str, Callable[[RopeConfig, int], np.ndarray]] = {
    "default": _unscaled,
    "linear": _linear,
    "ntk": _ntk,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}


def yarn_attention_factor(factor: float, mscale: float | None = None, mscale_all_dim: float | None = None) -> float:
    """Returns YaRN's factor of cosine and sine (Peng et al. 2023, eq. 22), with DeepSeek's two weights."""

    def magnitude(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if mscale and mscale_all_dim:
        return magnitude(mscale) / magnitude(mscale_all_dim)
    return magnitude(1.0)


def longrope_attention_factor(factor: float, original_max_positions: int) -> float:
    """Returns LongRoPE's factor of cosine and sine (Ding et al. 2024)."""
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(max(2, original_max_positions)))


def alibi_slopes(heads: int) -> tuple[float, ...]:
    """Returns how much each head's scores drop per position of distance (Press et al. 2022).

    The slopes form a geometric sequence if the number of heads is a power of two. Other numbers of heads add every
    second slope of the next power of two.
    """
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2.0 ** (-8 * (i + 1) / power) for i in range(power)]
    between = [2.0 ** (-4 * (i + 1) / power) for i in range(0, 2 * power, 2)]
    return tuple((slopes + between)[:heads])
