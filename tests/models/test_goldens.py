"""Every family against what transformers computed for a tiny random model of it (tests/goldens), with all kernels.

Families that transformers has no class for are compared with scripts/reference_models.py; their golden says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inference import kernels
from inference.checkpoint.open import open_checkpoint
from inference.kernels.build import KernelBuildError
from inference.kernels.formats import Format
from inference.models.architecture.registry import model_config_from
from inference.models.runner import ModelRunner
from inference.models.step import SequenceStep, StepBatch
from inference.models.weights import loading

GOLDENS = Path(__file__).parents[1] / "goldens"
CASES = sorted(path.parent.name for path in GOLDENS.glob("*/golden.npz"))
# Run in every way: between them they have every kind of attention and feed-forward half. The others, whose parts the
# same kernels compute, in fewer.
THOROUGHLY = ["deepseek_v3", "llama31", "mistral_window", "qwen3"]
STEPS = 64
# Of the position's largest logit; what is measured is 3e-6.
TOLERANCE = 1e-4


@dataclass
class Row:
    """A prompt, what transformers says of it, and blocks of cache for it and its answer."""

    prompt: list[int]
    positions: np.ndarray
    logits: np.ndarray
    greedy: list[int]
    blocks: list[int]

    def check(self, logits: np.ndarray, positions: np.ndarray | None = None) -> None:
        """`logits` are those of `positions`, or of every token of the prompt."""
        expected = self.logits
        if positions is None:
            logits = logits[self.positions]
        else:
            expected = expected[np.isin(self.positions, positions)]
            logits = logits[np.isin(positions, self.positions)]
        assert logits.shape == expected.shape and len(expected)
        largest = np.abs(expected).max(axis=1, keepdims=True)
        error = (np.abs(logits - expected) / largest).max()
        assert error < TOLERANCE, f"prompt of {len(self.prompt)}: relative error {error:.1e}"


@dataclass
class Case:
    """A model and its rows."""

    runner: ModelRunner
    rows: list[Row]

    def step(self, parts: Sequence[tuple[list[int], int, list[int]]], all_logits: bool = False) -> np.ndarray:
        """One step of (tokens, start, blocks) a sequence."""
        sequences = [SequenceStep(*part) for part in parts]
        result = self.runner.step(StepBatch.build(sequences, self.runner.block_size, all_logits))
        assert (result.best == result.logits.argmax(axis=1)).all()
        return result.logits

    def greedy(self, rows: Sequence[Row], cached: bool, steps: int = STEPS) -> list[list[int]]:
        """Greedy tokens of all rows, run together."""
        texts = [list(row.prompt) for row in rows]
        starts = [0] * len(rows)
        for _ in range(steps):
            parts = [(text[start:], start, row.blocks) for text, start, row in zip(texts, starts, rows, strict=True)]
            if cached:
                starts = [len(text) for text in texts]
            for text, logits in zip(texts, self.step(parts), strict=True):
                text.append(int(logits.argmax()))
        return [text[len(row.prompt) :] for text, row in zip(texts, rows, strict=True)]


def build(name: str, block_size: int, kind: str = "stock", weight_format: Format | None = None) -> Case:
    try:
        chosen = kernels.choose(kind, device_target="CPU", mode=0, block_size=block_size, threads=None, say=print)
    except KernelBuildError as error:
        pytest.skip(str(error))
    directory = GOLDENS / name
    config = model_config_from(json.loads((directory / "config.json").read_text()), name)
    golden = np.load(directory / "golden.npz")
    # Block tables in no order, so that a slot is right only by way of its table.
    num_blocks = 1 + sum(-(-(int(length) + STEPS) // block_size) for length in golden["lengths"])
    free = list(np.random.default_rng(7).permutation(np.arange(1, num_blocks)))
    rows = []
    for i, length in enumerate(golden["lengths"]):
        blocks = [int(free.pop()) for _ in range(-(-(int(length) + STEPS) // block_size))]
        prompt, greedy = golden[f"prompt_{i}"].tolist(), golden[f"greedy_{i}"].tolist()
        rows.append(Row(prompt, golden[f"positions_{i}"], golden[f"logits_{i}"], greedy, blocks))
    pairs = loading.fit(open_checkpoint(directory), config, directory)
    sizes = {"num_blocks": num_blocks, "block_size": block_size}
    runner = ModelRunner(config, pairs, kernels=chosen, weight_format=weight_format, **sizes)
    return Case(runner, rows)


@pytest.fixture(scope="module", params=[f"{name}-{kind}" for name in THOROUGHLY for kind in ("stock", "native")])
def case(request: pytest.FixtureRequest, graph_mode: None) -> Case:
    name, kind = request.param.split("-")
    return build(name, 16, kind)


@pytest.mark.parametrize("name", ["llama2_gqa", "qwen2_tied", "mistral_window"])
@pytest.mark.parametrize("weight_format", [Format.FLOAT16, Format.BFLOAT16])
def test_sixteen_bit_weights_lose_only_their_rounding(name: str, weight_format: Format, graph_mode: None) -> None:
    """Stock operators compute in float32 with the same rounded weights; what is measured is 1.1e-5."""
    native, stock = (build(name, 16, kind, weight_format) for kind in ("native", "stock"))
    for row in native.rows:
        got, expected = (case.step([(row.prompt, 0, row.blocks)], all_logits=True) for case in (native, stock))
        assert np.abs(got - expected).max() <= TOLERANCE * np.abs(expected).max()


# The traits of networks of stock operators that were compiled in this process.
COMPILED: set[tuple] = set()


def traits(owner: str, name: str, value: Any) -> Iterator[tuple]:
    """Yields what a `construct` can branch on: flags, options, signs of numbers, and which parts there are."""
    if value is None or isinstance(value, bool | str):
        yield owner, name, value
    elif isinstance(value, int | float):
        yield owner, name, np.sign(value), value == 1
    elif is_dataclass(value):
        for field in fields(value):
            yield from traits(f"{owner}.{name}", field.name, getattr(value, field.name))
    else:
        yield owner, name, type(value).__name__


def network_traits(network: Any) -> set[tuple]:
    found: set[tuple] = set()
    for cell in network.cells():
        found |= network_traits(cell)
    kind = type(network).__name__
    for name, value in vars(network).items():
        if not name.startswith("_"):
            found.update(traits(kind, name, value))
    parts = [*network.name_cells(), *network.parameters_dict(recurse=False)]
    return found | {(kind, "has", part.rpartition(".")[2]) for part in parts if not part.isdecimal()}


@contextmanager
def eager_if_compiled(network: Any) -> Iterator[bool]:
    """Runs stock operators eagerly if graphs with all traits of the network were compiled before; yields whether.

    Compiling one takes three seconds, and 48 models have 17 kinds of network.
    """
    import mindspore

    found = network_traits(network)
    known = found <= COMPILED
    COMPILED.update(found)
    mindspore.set_context(mode=mindspore.PYNATIVE_MODE if known else mindspore.GRAPH_MODE)
    try:
        yield known
    finally:
        mindspore.set_context(mode=mindspore.GRAPH_MODE)


@pytest.mark.parametrize("kind", ["stock", "native"])
@pytest.mark.parametrize("name", [name for name in CASES if name not in THOROUGHLY])
def test_every_other_family(name: str, kind: str, graph_mode: None) -> None:
    """Logits of prompts that run together and in pieces, and greedy tokens with a cache; of stock operators a few."""
    case = build(name, 16, kind)
    if kind == "stock":
        with eager_if_compiled(case.runner._network.network) as eager:
            check_family(case, kind, steps=2 if eager else 3)
    else:
        check_family(case, kind, STEPS)


def check_family(case: Case, kind: str, steps: int) -> None:
    logits = case.step([(row.prompt, 0, row.blocks) for row in case.rows], all_logits=True)
    ends = np.cumsum([len(row.prompt) for row in case.rows])
    for row, its_logits in zip(case.rows, np.split(logits, ends[:-1]), strict=True):
        row.check(its_logits)
    if kind == "native":
        longest = case.rows[-1]
        pieces = [
            case.step([(longest.prompt[begin : begin + 13], begin, longest.blocks)], all_logits=True)
            for begin in range(0, len(longest.prompt), 13)
        ]
        longest.check(np.concatenate(pieces))
    assert case.greedy(case.rows, cached=True, steps=steps) == [row.greedy[:steps] for row in case.rows]


def test_a_golden_names_its_source() -> None:
    with_source = {name for name in CASES if "source" in np.load(GOLDENS / name / "golden.npz")}
    assert with_source == {"internlm2", "chatglm3", "baichuan2_7b", "baichuan2_13b", "telechat2"}


def test_prompts_cover_one_token_and_several_blocks() -> None:
    for name in CASES:
        lengths = np.load(GOLDENS / name / "golden.npz")["lengths"]
        assert lengths.min() == 1 and lengths.max() > 4 * 16 and any(length % 2 for length in lengths)
    assert {"llama2_mha", "llama2_gqa", "llama31", "llama32_tied", "mistral_window", "qwen2", "qwen3"} <= set(CASES)


def test_logits_of_prompts_run_together(case: Case) -> None:
    logits = case.step([(row.prompt, 0, row.blocks) for row in case.rows], all_logits=True)
    start = 0
    for row in case.rows:
        row.check(logits[start : start + len(row.prompt)])
        start += len(row.prompt)
    assert start == len(logits)


def test_logits_of_each_prompt_alone(case: Case) -> None:
    for row in case.rows:
        row.check(case.step([(row.prompt, 0, row.blocks)], all_logits=True))


@pytest.mark.parametrize("chunks", [(1, 3, 2), (5,), (13, 16, 17)])
def test_logits_of_prompts_in_chunks(case: Case, chunks: tuple[int, ...]) -> None:
    """Rows are at different places and take chunks of different sizes, so prefill and decode mix in a step."""
    starts = [0] * len(case.rows)
    seen: list[list[np.ndarray]] = [[] for _ in case.rows]
    step = 0
    while any(start < len(row.prompt) for start, row in zip(starts, case.rows, strict=True)):
        parts, who = [], []
        for index, row in enumerate(case.rows):
            count = min(chunks[(step + index) % len(chunks)], len(row.prompt) - starts[index])
            if count:
                parts.append((row.prompt[starts[index] : starts[index] + count], starts[index], row.blocks))
                who.append(index)
                starts[index] += count
        at, logits = 0, case.step(parts, all_logits=True)
        for index, part in zip(who, parts, strict=True):
            seen[index].append(logits[at : at + len(part[0])])
            at += len(part[0])
        step += 1
    for row, pieces in zip(case.rows, seen, strict=True):
        row.check(np.concatenate(pieces))


def test_last_logits_are_those_of_the_last_token(case: Case) -> None:
    for row, logits in zip(case.rows, case.step([(r.prompt, 0, r.blocks) for r in case.rows]), strict=True):
        row.check(logits[None], np.array([len(row.prompt) - 1]))


def test_greedy_tokens_with_cache(case: Case) -> None:
    assert case.greedy(case.rows, cached=True) == [row.greedy for row in case.rows]


def test_greedy_tokens_without_cache(case: Case) -> None:
    rows = [row for row in case.rows if len(row.prompt) in (1, 7, 33)]
    assert len(rows) == 3
    # Every step is longer than the last, which stock operators take a while for.
    steps = STEPS if case.runner.kernels.NARROW else 20
    assert case.greedy(rows, cached=False, steps=steps) == [row.greedy[:steps] for row in rows]


@pytest.mark.parametrize(("kind", "block_size"), [("stock", 3), ("stock", 128), ("native", 64)])
@pytest.mark.parametrize("name", ["llama31", "mistral_window"])
def test_block_size_does_not_change_answers(graph_mode: None, name: str, kind: str, block_size: int) -> None:
    case = build(name, block_size, kind)
    assert case.greedy(case.rows, cached=True) == [row.greedy for row in case.rows]


def test_the_cache_of_finished_rows_can_be_used_again(case: Case) -> None:
    """What a block held before must not show: rows swap their blocks and run again."""
    case.greedy(case.rows[-1:], cached=True, steps=9)
    short = next(row for row in case.rows if len(row.prompt) == 2)
    reused = Row(short.prompt, short.positions, short.logits, short.greedy, case.rows[-1].blocks)
    assert case.greedy([reused], cached=True, steps=9) == [short.greedy[:9]]


def test_a_wrong_position_is_detected(case: Case) -> None:
    """The check itself: the same prompt, one position on, must not pass."""
    row = case.rows[-1]
    shifted = case.step([(row.prompt[:1], 0, row.blocks), (row.prompt[1:], 2, case.rows[-2].blocks)], all_logits=True)
    with pytest.raises(AssertionError, match="relative error"):
        row.check(shifted)
