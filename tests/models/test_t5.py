"""T5 against what transformers computed for tiny random models of it (tests/goldens/t5), with all kernels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from inference.checkpoint.open import open_checkpoint
from inference.errors import CheckpointError, ConfigError
from inference.generation import perplexity
from inference.generation.perplexity import Continuation
from inference.kernels.build import KernelBuildError, library_path
from inference.kernels.formats import Format
from inference.models.architecture.registry import model_config_from
from inference.models.architecture.t5_config import T5Config
from inference.models.step import SequenceStep, StepBatch
from inference.models.weights import loading
from inference.models.weights.parameters import parameter_shapes

if TYPE_CHECKING:
    from inference.models.encoder_decoder import EncoderDecoderRunner

pytestmark = pytest.mark.usefixtures("graph_mode")
GOLDENS = Path(__file__).parents[1] / "goldens" / "t5"
CASES = ("t5_relu", "t5_gated_untied", "t5_untied_v5")
STEPS, EVERY, BLOCK = 40, 4, 16
# Of the largest logit; what is measured is 4e-6.
TOLERANCE = 1e-4


@dataclass
class Row:
    """A source, its answer, and blocks of cache in no order for each."""

    source: list[int]
    answer: list[int]
    logits: np.ndarray
    source_blocks: list[int]
    blocks: list[int]

    @property
    def encoded(self) -> tuple[list[int], int]:
        return self.source_blocks, len(self.source)


@dataclass
class Case:
    runner: EncoderDecoderRunner
    rows: list[Row]

    def encode(self, rows: Sequence[Row]) -> None:
        steps = [SequenceStep(row.source, 0, row.source_blocks) for row in rows]
        self.runner.encode(StepBatch.build(steps, BLOCK))

    def decode(self, rows: Sequence[Row], start: int, end: int) -> np.ndarray:
        """Logits [rows, end - start, V] of these of the tokens 0 (the start token), answer[0], answer[1], ..."""
        steps = [SequenceStep([0, *row.answer][start:end], start, row.blocks, row.encoded) for row in rows]
        result = self.runner.step(StepBatch.build(steps, BLOCK, all_logits=True))
        assert (result.best == result.logits.argmax(axis=1)).all()
        return result.logits.reshape(len(rows), end - start, -1)


def read_config(name: str) -> T5Config:
    return model_config_from(json.loads((GOLDENS / name / "config.json").read_text()), name)


def build(name: str, kernels: str, weight_format: Format | None = Format.FLOAT32, cache_dtype: str = "float32") -> Case:
    if kernels == "native":
        try:
            library_path()
        except KernelBuildError as error:
            pytest.skip(str(error))
    config, golden = read_config(name), np.load(GOLDENS / name / "golden.npz")
    lengths = golden["lengths"].tolist()
    count = 1 + sum(-(-length // BLOCK) - (-(STEPS + 1) // BLOCK) for length in lengths)
    free = np.random.default_rng(5).permutation(np.arange(1, count)).tolist()
    rows = []
    for i, length in enumerate(lengths):
        source_blocks = [free.pop() for _ in range(-(-length // BLOCK))]
        blocks = [free.pop() for _ in range(-(-STEPS // BLOCK))]
        answer = golden[f"greedy_{i}"].tolist()
        rows.append(Row(golden[f"source_{i}"].tolist(), answer, golden[f"logits_{i}"], source_blocks, blocks))
    pairs = loading.fit(open_checkpoint(GOLDENS / name), config, GOLDENS / name)
    module = import_module(f"inference.kernels.{kernels}")
    sizes = {"num_blocks": count, "block_size": BLOCK, "cache_dtype": cache_dtype}
    from inference.models.encoder_decoder import EncoderDecoderRunner

    return Case(EncoderDecoderRunner(config, pairs, kernels=module, weight_format=weight_format, **sizes), rows)


# Stock operators take seconds to compile a model: one here, one with narrow weights.
@pytest.fixture(scope="module", params=["t5_gated_untied-stock", *(f"{name}-native" for name in CASES)])
def case(request: pytest.FixtureRequest, graph_mode: None) -> Case:
    return build(*request.param.split("-"))


def error_of(row: Row, logits: np.ndarray) -> float:
    """Of the logits [n, V] of the first n tokens, relative to the largest."""
    expected = row.logits[: -(-len(logits) // EVERY)]
    return float(np.abs(logits[::EVERY] - expected).max() / np.abs(expected).max())


def test_logits_of_rows_run_together(case: Case) -> None:
    case.encode(case.rows)
    for row, logits in zip(case.rows, case.decode(case.rows, 0, STEPS), strict=True):
        assert error_of(row, logits) < TOLERANCE


@pytest.mark.parametrize("at", [0, 3 * EVERY])
@pytest.mark.parametrize("at_once", [9, 512])
def test_the_likelihood_of_an_answer(case: Case, at: int, at_once: int, monkeypatch) -> None:
    """A token of each answer given those before it and the source, several rows in a step or each in parts."""
    monkeypatch.setattr(perplexity, "TOKENS_AT_ONCE", at_once)
    rows = [Continuation([0, *row.answer[: at + 1]], at + 1, source=row.source) for row in case.rows]
    for row, found in zip(case.rows, perplexity.score_continuations(case.runner, rows), strict=True):
        logits = row.logits[at // EVERY].astype(np.float64)
        expected = np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[row.answer[at]]
        assert found.tokens == 1
        assert found.nats == pytest.approx(expected, abs=TOLERANCE * np.abs(logits).max())


def test_token_by_token_each_source_encoded_alone(case: Case) -> None:
    for row in case.rows[::-1]:
        case.encode([row])
    count = STEPS if case.runner.kernels.NARROW else 9
    found = np.concatenate([case.decode(case.rows, at, at + 1) for at in range(count)], axis=1)
    for row, logits in zip(case.rows, found, strict=True):
        assert logits.argmax(axis=1).tolist() == row.answer[:count]
        assert error_of(row, logits) < TOLERANCE


def test_answers_in_chunks_on_reused_blocks(case: Case) -> None:
    case.encode(case.rows)
    for row in case.rows:
        pieces = [case.decode([row], begin, min(begin + 7, STEPS)) for begin in range(0, STEPS, 7)]
        assert error_of(row, np.concatenate(pieces, axis=1)[0]) < TOLERANCE


def test_another_source_gives_other_logits(case: Case) -> None:
    """The check itself: a source that is a token shorter must not pass."""
    row = case.rows[-1]
    cut = Row(row.source[:-1], row.answer, row.logits, row.source_blocks, row.blocks)
    case.encode([cut])
    assert error_of(row, case.decode([cut], 0, STEPS)[0]) > 10 * TOLERANCE


@pytest.mark.parametrize(("cache_dtype", "limit"), [("float32", TOLERANCE), ("float16", 0.02), ("int8", 0.1)])
def test_sixteen_bits(cache_dtype: str, limit: float) -> None:
    """The goldens' weights are bfloat16 values; what is measured with a float16 cache is up to 9e-3."""
    case = build("t5_gated_untied", "native", Format.BFLOAT16, cache_dtype)
    case.encode(case.rows)
    for row, logits in zip(case.rows, case.decode(case.rows, 0, STEPS), strict=True):
        error = np.sqrt(np.mean((logits[::EVERY] - row.logits) ** 2))
        assert error < limit * np.abs(row.logits).max()


def test_narrow_weights(graph_mode: None) -> None:
    """Stock operators compute with the same rounded weights; only int8 activations differ."""
    found = []
    for case in (build("t5_relu", kernels, Format.INT4) for kernels in ("native", "stock")):
        case.encode(case.rows)
        found.append(case.decode(case.rows, 0, STEPS))
    assert np.sqrt(np.mean((found[0] - found[1]) ** 2)) < 0.08 * np.abs(found[1]).max()


def test_buckets() -> None:
    """Near distances apart, far ones together; one way, all keys ahead are at distance 0."""
    config = read_config("t5_relu")
    both, back = config.distance_buckets(bidirectional=True), config.distance_buckets(bidirectional=False)
    assert len(both) == len(back) == 2 * 128 + 1
    assert both[128 - 8 : 128 + 9].tolist() == [8, 7, 6, 5, 4, 3, 2, 1, 0, 17, 18, 19, 20, 21, 22, 23, 24]
    assert back[128:].tolist() == [0] * 129 and back[128 - 16 : 128].tolist() == list(range(16, 0, -1))
    assert (both[0], both[-1], back[0]) == (15, 31, 31)
    assert (np.diff(both[:129]) <= 0).all() and (np.diff(back) <= 0).all()


def test_mindformers_keys() -> None:
    """As configs/t5/run_t5_small_on_wmt16.yaml of MindFormers spells it."""
    keys = {
        "type": "T5Config", "d_ff": 2048, "hidden_size": 512, "hidden_act": "relu", "d_kv": 64, "num_heads": 8,
        "num_hidden_layers": 6, "layer_norm_epsilon": 1e-6, "max_position_embeddings": 1024, "seq_length": 1024,
        "relative_attention_num_buckets": 32, "start_token_id": 0, "vocab_size": 32128,
    }  # fmt: skip
    config = model_config_from(keys, "t5.yaml", "T5ForConditionalGeneration")
    assert (config.num_encoder_layers, config.num_layers, config.context_length) == (6, 6, 1024)
    assert config.tie_embeddings and config.activation == "relu" and not config.gated
    assert config.num_parameters == 60_506_624


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("feed_forward_proj", "swish", "'feed_forward_proj' is 'swish'.*gated-gelu"),
        ("d_model", None, "'d_model' is missing"),
        ("relative_attention_num_buckets", 6, "multiple of 4"),
        ("decoder_start_token_id", "x", "token id"),
    ],
)
def test_impossible_settings(key: str, value: object, message: str) -> None:
    values = json.loads((GOLDENS / "t5_relu" / "config.json").read_text()) | {key: value}
    with pytest.raises(ConfigError, match=message):
        model_config_from(values, "config.json")


def test_duplicate_tensors_are_skipped_and_missing_ones_named() -> None:
    config, directory = read_config("t5_relu"), GOLDENS / "t5_relu"
    stored = open_checkpoint(directory)
    again = stored | dict.fromkeys(("encoder.embed_tokens.weight", "lm_head.weight"), stored["shared.weight"])
    assert len(loading.fit(again, config, directory)) == len(stored)
    del again["decoder.block.1.layer.1.EncDecAttention.k.weight"]
    with pytest.raises(CheckpointError, match=r"1 missing: decoder.block.1.layer.1.EncDecAttention.k.weight"):
        loading.fit(again, config, directory)


def test_mindformers_names_and_layout() -> None:
    """As its convert_weight writes them: output and feed-forward matrices are stored [in, out]."""
    config, directory = read_config("t5_relu"), GOLDENS / "t5_relu"
    stored = open_checkpoint(directory)
    theirs = {mindformers_name(name): tensor for name, tensor in stored.items()}
    assert not set(theirs) & set(stored) and all(name.startswith("t5_model.") for name in theirs)
    for name, tensor in theirs.items():
        if "projection" in name or "mapping" in name:
            theirs[name] = replace(tensor, shape=tensor.shape[::-1])
    pairs = loading.fit(theirs, config, directory)
    ours = {
        (place.parameter, place.first_row): tensor.segments for tensor, place in loading.fit(stored, config, directory)
    }
    assert {(place.parameter, place.first_row): tensor.segments for tensor, place in pairs} == ours
    turned = {place.parameter for _, place in pairs if place.transposed}
    assert turned == {
        name for name in parameter_shapes(config) if name.endswith((".o.weight", ".wi.weight", ".wo.weight"))
    }


def mindformers_name(name: str) -> str:
    """Hugging Face's name of a tensor -> MindFormers'."""
    if name == "shared.weight":
        return "t5_model.tfm_embedding_lookup.embedding_table"
    stack, _, rest = name.partition(".")
    if rest == "final_layer_norm.weight":
        return f"t5_model.{stack}_layernorm.gamma"
    _, layer, _, part, *end = rest.split(".")
    cross = stack == "decoder" and part == "1"
    block = f"t5_model.tfm_{stack}.blocks.{layer}"
    if end[0] == "layer_norm":
        norm = "cross_attention_layernorm" if cross else "layernorm1" if part == "0" else "layernorm2"
        return f"{block}.{norm}.gamma"
    if end[0] == "DenseReluDense":
        return f"{block}.output.{'mapping' if end[1] == 'wi' else 'projection'}.weight"
    if end[1] == "relative_attention_bias":
        return f"{block}.attention.bias_generator.embeddings_table"
    dense = {"q": "dense1", "k": "dense2", "v": "dense3", "o": "projection"}[end[1]]
    return f"{block}.{'cross_attention' if cross else 'attention'}.{dense}.weight"
