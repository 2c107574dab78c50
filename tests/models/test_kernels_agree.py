"""The native kernels against the stock operators they stand beside: whole steps of small models, of any shape."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial
from importlib import import_module
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mixed_formats import mixed_format

from examples import examples
from inference.kernels.build import KernelBuildError, library_path
from inference.kernels.formats import Format, WeightFormat, pack_into
from inference.models.architecture.registry import model_config_from
from inference.models.runner import ModelRunner
from inference.models.step import SequenceStep, StepBatch
from inference.models.weights import loading
from inference.models.weights.sharding import Shard

try:
    library_path()
except KernelBuildError as error:
    pytest.skip(str(error), allow_module_level=True)

pytestmark = pytest.mark.usefixtures("graph_mode")
BLOCKS, BLOCK_SIZE, VOCABULARY = 40, 16, 101
COMMON = {
    "num_hidden_layers": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
# Sizes that fill no register and no panel, each with another part of the block.
MODELS = {
    "grouped": {"architectures": ["LlamaForCausalLM"], "hidden_size": 36, "intermediate_size": 50}
    | {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10},
    "window": {"architectures": ["MistralForCausalLM"], "hidden_size": 32, "intermediate_size": 33}
    | {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8, "sliding_window": 5},
    "biases": {"architectures": ["Qwen2ForCausalLM"], "hidden_size": 40, "intermediate_size": 17}
    | {"num_attention_heads": 5, "num_key_value_heads": 1, "tie_word_embeddings": True},
    "norms": {"architectures": ["Qwen3ForCausalLM"], "hidden_size": 24, "intermediate_size": 64}
    | {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 34},
    "caps, post-norms, tanh-gelu": {"architectures": ["Gemma2ForCausalLM"], "hidden_size": 36, "intermediate_size": 50}
    | {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10, "query_pre_attn_scalar": 3}
    | {"sliding_window": 5, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0},
    "two rotations": {"architectures": ["Gemma3ForCausalLM"], "hidden_size": 32, "intermediate_size": 48}
    | {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 12, "sliding_window": 7}
    | {"sliding_window_pattern": 2, "rope_local_base_freq": 30.0},
    "layer norm, positions, no gate": {"architectures": ["GPT2LMHeadModel"], "hidden_size": 36}
    | {"intermediate_size": 50, "num_attention_heads": 6},
    "slopes, exact gelu": {"architectures": ["BaichuanForCausalLM"], "hidden_size": 40, "intermediate_size": 48}
    | {"num_attention_heads": 5, "position_embedding_type": "alibi", "hidden_act": "gelu"},
    "part of a head, magnitude": {"architectures": ["Phi3ForCausalLM"], "hidden_size": 40, "intermediate_size": 48}
    | {"num_attention_heads": 4, "num_key_value_heads": 2, "partial_rotary_factor": 0.6}
    | {"rope_scaling": {"type": "longrope", "short_factor": [1.0, 2.0, 3.0], "long_factor": [1.0, 3.0, 5.0]}}
    | {"original_max_position_embeddings": 32},
    "latents": {"architectures": ["DeepseekV2ForCausalLM"], "hidden_size": 28, "intermediate_size": 40}
    | {"num_attention_heads": 3, "q_lora_rank": 22, "kv_lora_rank": 18, "qk_nope_head_dim": 10}
    | {"qk_rope_head_dim": 6, "v_head_dim": 14, "attention_bias": True},
}
EXPERTS = {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 20,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
}
# Where rounding may send a token to another expert, only bits can be compared.
ROUTED = {
    "mixture": {**MODELS["grouped"], **EXPERTS, "architectures": ["Qwen3MoeForCausalLM"]},
    "deepseek": {**MODELS["latents"], **EXPERTS, "architectures": ["DeepseekV3ForCausalLM"]}
    | {"q_lora_rank": None, "n_group": 3, "topk_group": 2, "first_k_dense_replace": 1},
}


# What rounding keys and values moves the logits by, relative to the largest: float16 by 1e-3, at times by 3e-3.
CACHE_LIMITS = {"float16": 1e-2, "int8": 0.1}


@lru_cache
def shared_runner(name: str, kernels: str, cache_dtype: str = "float32") -> ModelRunner:
    return make_runner(name, kernels, cache_dtype)


def make_runner(
    name: str, kernels: str, cache_dtype: str = "float32", weight_format: WeightFormat = Format.FLOAT32
) -> ModelRunner:
    config = model_config_from(COMMON | (MODELS | ROUTED)[name], name)
    module = import_module(f"inference.kernels.{kernels}")
    sizes = {"num_blocks": BLOCKS, "block_size": BLOCK_SIZE, "cache_dtype": cache_dtype}
    with mock.patch.object(loading, "fill_random", fill_random):
        return ModelRunner(config, None, kernels=module, weight_format=weight_format, seed=3, **sizes)


def fill_random(
    shapes: Mapping[str, tuple[int, ...]],
    destinations: Mapping[str, loading.Destination],
    seed: int,
    shard: Shard,
) -> None:
    """Weights wide enough to show each part of a layer, vectors among them."""
    generator = np.random.default_rng(seed)
    for name, shape in shapes.items():
        values = generator.standard_normal(shape, dtype=np.float32) * np.float32(0.2)
        is_norm = len(shape) == 1 and name.endswith("weight")
        destinations[name].write_values(values + np.float32(1) if is_norm else values)


@st.composite
def steps_of_sequences(draw: st.DrawFn) -> list[list[SequenceStep]]:
    """Up to four sequences on blocks of their own, each cut into as many pieces as there are steps."""
    blocks = draw(st.permutations(range(1, BLOCKS)))
    steps: list[list[SequenceStep]] = [[], []]
    for row in range(draw(st.integers(1, 4))):
        length = draw(st.sampled_from([1, 2, 15, 16, 17, 33, 70]))
        tokens = np.random.default_rng(draw(st.integers(0, 99))).integers(0, VOCABULARY, length).tolist()
        cut = draw(st.integers(0, length))
        table = blocks[row * 8 : row * 8 + 8]
        for step, (begin, end) in zip(steps, [(0, cut), (cut, length)], strict=True):
            if begin < end:
                step.append(SequenceStep(tokens[begin:end], begin, table))
    return [step for step in steps if step]


@pytest.mark.parametrize("name", MODELS)
@examples(6)
@given(steps=steps_of_sequences())
def test_logits_agree(name: str, steps: list[list[SequenceStep]]) -> None:
    ours, theirs = shared_runner(name, "native"), shared_runner(name, "stock")
    narrow = {dtype: shared_runner(name, "native", dtype) for dtype in CACHE_LIMITS}
    for step in steps:
        batch = StepBatch.build(step, BLOCK_SIZE, all_logits=True)
        expected = theirs.step(batch).logits
        allowed = np.abs(expected).max()
        got = ours.step(batch)
        # MindSpore's tanh on a CPU is right to 7e-6 only.
        has_caps = ours.config.softcap is not None
        assert np.abs(got.logits - expected).max() <= (1e-4 if has_caps else 2e-5) * allowed
        assert (got.best == got.logits.argmax(axis=1)).all()
        for dtype, limit in CACHE_LIMITS.items():
            assert np.abs(narrow[dtype].step(batch).logits - expected).max() <= limit * allowed, dtype


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("name", MODELS)
def test_a_tokens_result_does_not_depend_on_its_neighbors(name: str, dtype: str) -> None:
    """To the last bit: alone, beside another sequence, token by token."""
    model, tokens = shared_runner(name, "native", dtype), np.random.default_rng(4).integers(0, VOCABULARY, 40).tolist()
    alone = model.step(StepBatch.build([SequenceStep(tokens, 0, range(1, 4))], BLOCK_SIZE, all_logits=True)).logits
    pair = [SequenceStep(tokens[7:30], 0, range(4, 7)), SequenceStep(tokens, 0, range(7, 10))]
    together = model.step(StepBatch.build(pair, BLOCK_SIZE, all_logits=True)).logits
    assert np.array_equal(together[23:], alone)
    for position, token in enumerate(tokens):
        batch = StepBatch.build([SequenceStep([token], position, range(10, 13))], BLOCK_SIZE)
        assert np.array_equal(model.step(batch).logits[0], alone[position])


@pytest.mark.parametrize(
    ("name", "weight_format"),
    [(name, Format.FLOAT32) for name in ROUTED] + [(name, Format.INT4) for name in ("latents", *ROUTED)],
)
def test_a_token_is_the_same_to_the_last_bit_alone_and_in_any_batch(name: str, weight_format: Format) -> None:
    """Whole prompts together, prompts one by one, and prompts token by token in the company of others."""
    cache_dtype = "float16" if weight_format is Format.INT4 else "float32"
    model = make_runner(name, "native", cache_dtype, weight_format)
    lengths = (1, 17, 40)
    prompts = [np.random.default_rng(row).integers(0, VOCABULARY, n).tolist() for row, n in enumerate(lengths)]
    tables = [range(1 + 8 * row, 9 + 8 * row) for row in range(len(prompts))]

    def last(*steps: SequenceStep) -> np.ndarray:
        return model.step(StepBatch.build(steps, BLOCK_SIZE)).logits

    together = last(*(SequenceStep(prompt, 0, table) for prompt, table in zip(prompts, tables, strict=True)))
    for prompt, table, expected in zip(prompts, tables, together, strict=True):
        assert np.array_equal(last(SequenceStep(prompt, 0, table))[0], expected)
    for at in range(lengths[1]):
        long = SequenceStep(prompts[2][2 * at : 2 * at + 2], 2 * at, tables[2])
        got = last(SequenceStep(prompts[1][at : at + 1], at, tables[1]), long)
    assert np.array_equal(got[0], together[1])


@pytest.mark.parametrize("name", ["grouped", "deepseek"])
def test_matrices_of_different_formats_agree(name: str) -> None:
    """Each matrix of the model in another format; only the native kernels round the inputs of products to int8."""
    formats = mixed_format(model_config_from(COMMON | (MODELS | ROUTED)[name], name))
    assert len(set(formats.by_parameter.values())) == 5
    batch = StepBatch.build([SequenceStep(list(range(3, 20)), 0, [1, 2])], BLOCK_SIZE, all_logits=True)
    got, expected = (
        make_runner(name, kernels, weight_format=formats).step(batch).logits for kernels in ("native", "stock")
    )
    errors = np.sqrt(np.mean((got - expected) ** 2, axis=1)) / np.abs(expected).max()
    assert 0 < np.median(errors) < 0.03


@pytest.mark.parametrize("name", ROUTED)
def test_experts_and_groups_agree_with_stock_operators(name: str) -> None:
    """On one batch, in which no router is in doubt."""
    sequences = [SequenceStep(list(range(3, 3 + n)), 0, range(1 + 8 * n, 9 + 8 * n)) for n in (1, 4)]
    batch = StepBatch.build(sequences, BLOCK_SIZE, all_logits=True)
    got, expected = (make_runner(name, kernels).step(batch).logits for kernels in ("native", "stock"))
    assert np.abs(got - expected).max() <= 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize("kernels", ["native", "stock"])
def test_whole_blocks_are_copied(kernels: str) -> None:
    """A sequence goes on from copies of its blocks as from the blocks themselves."""
    model = shared_runner("latents", kernels)
    tokens = list(range(20))
    model.step(StepBatch.build([SequenceStep(tokens, 0, [5, 9])], BLOCK_SIZE))
    model.copy_blocks([(5, 2), (9, 7)])
    steps = [SequenceStep([33], 20, [5, 9]), SequenceStep([33], 20, [2, 7]), SequenceStep([33], 20, [3, 8])]
    here, there, elsewhere = model.step(StepBatch.build(steps, BLOCK_SIZE)).logits
    # Stock operators may sum the rows of a batch in different orders; ours may not.
    if kernels == "native":
        assert np.array_equal(here, there)
    np.testing.assert_allclose(here, there, rtol=1e-4, atol=1e-5)
    assert not np.allclose(here, elsewhere)


@pytest.mark.parametrize("kernels", ["native", "stock"])
def test_one_graph_serves_all_shapes(kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is compiled again as lengths, rows, tables and the logits that are wanted change."""
    from mindspore.nn import cell

    executor = type(cell._cell_graph_executor)
    compile_, compiled = executor.compile, []

    def counting(*arguments, **options):
        phase, is_new = compile_(*arguments, **options)
        compiled.append(is_new)
        return phase, is_new

    monkeypatch.setattr(executor, "compile", counting)
    model = make_runner("grouped", kernels)
    model.compile()
    for rows, length, wanted in ((1, 1, []), (1, 30, [0]), (3, 5, [1]), (4, 1, []), (2, 70, [0, 1])):
        sequences = [SequenceStep([5] * length, 0, range(1 + 8 * row, 9 + 8 * row)) for row in range(rows)]
        model.step(StepBatch.build(sequences, BLOCK_SIZE, logit_rows=wanted))
    assert compiled == [True]


def test_only_requested_logits_are_sent() -> None:
    model = shared_runner("biases", "native")
    sequences = [SequenceStep([row + 1, 7], 0, range(1 + row, 2 + row)) for row in range(3)]
    whole = model.step(StepBatch.build(sequences, BLOCK_SIZE))
    some = model.step(StepBatch.build(sequences, BLOCK_SIZE, logit_rows=[2, 0]))
    none = model.step(StepBatch.build(sequences, BLOCK_SIZE, logit_rows=[]))
    assert np.array_equal(some.logits, whole.logits[[2, 0]]) and none.logits.shape == (0, VOCABULARY)
    assert np.array_equal(whole.best, some.best) and np.array_equal(whole.best, none.best)


@pytest.mark.parametrize("kind", ["native", "stock"])
@pytest.mark.parametrize("name", ["grouped", "window", "latents"])
def test_nan_stays_in_its_row(kind: str, name: str) -> None:
    """Also in the cache: the next row that is given its blocks does not see what it has left there."""
    model, clean = make_runner(name, kind), make_runner(name, kind)
    # MindSpore's own products round otherwise from one call to the next.
    same = np.array_equal if kind == "native" else partial(np.allclose, rtol=1e-4, atol=1e-5)
    embedding = model._network.network.embedding.weight
    if kind == "native":
        pack_into(np.full((1, model.config.hidden_size), np.nan, np.float32), embedding.format, embedding.data, 7)
    else:
        model.kernels.memory(embedding.data)[7] = np.nan
    batch = StepBatch.build([SequenceStep([3, token, 5], 0, [block]) for block, token in ((1, 2), (2, 7))], BLOCK_SIZE)
    got, expected = model.step(batch), clean.step(batch)
    assert got.best.tolist() == [expected.best[0], -1]
    assert same(got.logits[0], expected.logits[0]) and np.isnan(got.logits[1]).all()
    model.step(StepBatch.build([SequenceStep([7] * BLOCK_SIZE * 2, 0, [2, 3])], BLOCK_SIZE))
    batch = StepBatch.build([SequenceStep([1, 2], 0, [2]), SequenceStep([4] * (BLOCK_SIZE + 1), 0, [4, 3])], BLOCK_SIZE)
    got, expected = model.step(batch), clean.step(batch)
    assert np.array_equal(got.best, expected.best) and same(got.logits, expected.logits)


def test_a_long_window_does_not_depend_on_the_chunks() -> None:
    config = model_config_from(COMMON | MODELS["window"] | {"sliding_window": 200, "max_position_embeddings": 400}, "w")
    kernels = import_module("inference.kernels.native")
    model = ModelRunner(config, None, num_blocks=BLOCKS, block_size=BLOCK_SIZE, kernels=kernels, seed=3)
    tokens = np.random.default_rng(4).integers(0, VOCABULARY, 390).tolist()
    last = []
    for chunk in (390, 37, 1):
        for begin in range(0, 390, chunk):
            step = SequenceStep(tokens[begin : begin + chunk], begin, range(1, 26))
            result = model.step(StepBatch.build([step], BLOCK_SIZE))
        last.append(result.logits[0])
    assert np.array_equal(last[0], last[1]) and np.array_equal(last[0], last[2])
