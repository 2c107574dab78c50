"""Architectures as config.json and YAML files state them: every spelling, Llama's size rule, and what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples import examples
from inference.errors import ConfigError
from inference.kernels.shapes import Routing
from inference.models.architecture.config import ModelConfig
from inference.models.architecture.config_aliases import lay_over, translate_mindformers
from inference.models.architecture.experts import ExpertsConfig
from inference.models.architecture.latent import LatentConfig
from inference.models.architecture.registry import ALIASES, ARCHITECTURES, model_config_from, model_type_of
from inference.models.architecture.rope import RopeConfig
from inference.models.architecture.t5_config import T5Config
from inference.models.kv_cache import block_bytes

GOLDENS = Path(__file__).parents[1] / "goldens"
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
YARN_ROPE = RopeConfig(10000.0, "yarn", 4.0, original_max_positions=64, attention_factor=0.1 * math.log(4) + 1)
LONGROPE = {"type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.5], "long_factor": [1.0, 2.0, 3.0, 4.0]}
LONGROPE_ROPE = RopeConfig(
    10000.0,
    "longrope",
    4.0,
    original_max_positions=64,
    attention_factor=math.sqrt(1 + math.log(4) / math.log(64)),
    short_factors=(1.0, 1.1, 1.2, 1.5),
    long_factors=(1.0, 2.0, 3.0, 4.0),
    length=256,
)
LLAMA3_ROPE = RopeConfig(10000.0, "llama3", 8.0, 1.0, 4.0, 8192)


def read(**changes: object) -> ModelConfig:
    values = {**LLAMA, **changes}
    return model_config_from({key: value for key, value in values.items() if value != "absent"}, "config.json")


def family(name: str, **changes: object) -> ModelConfig:
    return read(architectures=[name], **changes)


@pytest.mark.parametrize("path", sorted(GOLDENS.glob("*/config.json")), ids=lambda path: path.parent.name)
def test_sizes_of_the_golden_models(path: Path) -> None:
    own = json.loads(path.read_text())
    values = {"tie_word_embeddings": own["model_type"] in ("gemma", "gemma2", "gpt2"), **translate_mindformers(own)}
    config = model_config_from(own, str(path))
    assert config.hidden_size == values["hidden_size"] and config.num_layers == values["num_hidden_layers"]
    assert config.num_heads == 4 and config.vocab_size == 128 and config.context_length == 256
    assert config.tie_embeddings == values["tie_word_embeddings"]
    assert config.query_size == config.num_heads * config.head_dim
    assert config.group_size == config.num_heads // config.num_kv_heads
    kind = values["model_type"]
    with_norm = kind in ("gemma3_text", "olmo2", "exaone4", "hunyuan_v1_dense") or kind.startswith("qwen3")
    assert config.qk_norm == (with_norm or values.get("use_qk_norm", False))
    with_bias = ("qwen2", "qwen2_tied", "qwen2_moe", "glm", "chatglm3", "gpt2", "glm4_moe", "deepseek_v2")
    with_bias += ("seed_oss", "starcoder2", "stablelm", "phi")
    assert config.qkv_bias == (path.parent.name in with_bias)
    assert (config.experts is None) == ("num_experts_per_tok" not in values)
    assert (config.latent is None) == ("kv_lora_rank" not in values)


@pytest.mark.parametrize("path", sorted(GOLDENS.glob("*/config.json")), ids=lambda path: path.parent.name)
def test_the_model_type_by_which_transformers_finds_a_class(path: Path) -> None:
    """`convert` writes it for a GGUF file; ChatGLM's and others' own code has no class there."""
    own = json.loads(path.read_text())
    if "source" not in np.load(path.parent / "golden.npz"):
        assert model_type_of(own["architectures"][0]) == own["model_type"]


def test_every_architecture_has_a_model_type() -> None:
    assert all(ALIASES[model_type_of(name)] == name for name in ARCHITECTURES)


def test_the_multipliers_of_granite_are_folded() -> None:
    """The stream is divided by the residual multiplier, whose square the norms' epsilon is divided by."""
    keys = {"embedding_multiplier": 12.0, "residual_multiplier": 0.5, "logits_scaling": 8.0}
    granite = family("GraniteForCausalLM", **keys, attention_multiplier=0.25, rms_norm_eps=1e-5)
    assert (granite.embedding_scale, granite.norm_eps, granite.logit_scale) == (24.0, 4e-5, 0.125)
    assert granite.attention_scale == 0.25
    assert family("GraniteForCausalLM").attention_scale == 1 and family("CohereForCausalLM").logit_scale == 0.0625
    with pytest.raises(ConfigError, match="'residual_multiplier' is 0.5; it must be 1 for this family"):
        family("Qwen3ForCausalLM", residual_multiplier=0.5)


@pytest.mark.parametrize(
    ("name", "keys", "rotated"),
    [
        ("SmolLM3ForCausalLM", {}, (True, True, True, False, True)),
        ("SmolLM3ForCausalLM", {"no_rope_layers": [0, 1, 1, 0, 1, 1]}, (False, True, True, False, True)),
        ("Exaone4ForCausalLM", {"sliding_window_pattern": "LGL"}, (True, False, True, True, False)),
        ("Exaone4ForCausalLM", {"sliding_window_pattern": 2}, (True, False, True, False, True)),
        ("Exaone4ForCausalLM", {"sliding_window": None}, None),
        ("Cohere2ForCausalLM", {"layer_types": ["full_attention", *["sliding_attention"] * 4]}, (False, *[True] * 4)),
        ("CohereForCausalLM", {}, None),
    ],
)  # fmt: skip
def test_layers_without_rotary_embedding(name: str, keys: dict, rotated: tuple[bool, ...] | None) -> None:
    config = family(name, num_hidden_layers=5, **keys)
    assert config.rotated == rotated
    angles = [config.rotation(config.rope_of(layer))[0].any() for layer in range(5)]
    assert angles == list(rotated or (True,) * 5)


@pytest.mark.parametrize(
    ("name", "keys", "problem"),
    [
        ("SmolLM3ForCausalLM", {"no_rope_layers": [1]}, "'no_rope_layers' .* an entry for each of the 3 layers"),
        ("Exaone4ForCausalLM", {"sliding_window_pattern": "LLX"}, "'sliding_window_pattern' .* a text of L and G"),
        ("StableLmForCausalLM", {"qk_layernorm": True}, "'qk_layernorm' is True; it must be false"),
        ("CohereForCausalLM", {"use_qk_norm": True}, "'use_qk_norm' is True; it must be false"),
    ],
)
def test_unsupported_parts_of_new_families(name: str, keys: dict, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        family(name, **keys)


class TestRope:
    @pytest.mark.parametrize(
        ("keys", "rope"),
        [
            ({}, RopeConfig()),
            ({"rope_theta": 500000}, RopeConfig(theta=500000.0)),
            ({"rope_theta": 5e5, "rope_scaling": None}, RopeConfig(theta=5e5)),
            ({"rope_scaling": {"type": "linear", "factor": 4}}, RopeConfig(kind="linear", factor=4.0)),
            ({"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, RopeConfig(kind="linear", factor=4.0)),
            ({"rope_scaling": {"rope_type": "default"}}, RopeConfig()),
            ({"rope_scaling": {"rope_type": "llama3", **LLAMA3}}, LLAMA3_ROPE),
            ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 10000.0, **LLAMA3}}, LLAMA3_ROPE),
            ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, RopeConfig(theta=1e6)),
            ({"rope_parameters": {"rope_theta": 1e6}, "rope_theta": 3.0}, RopeConfig(theta=1e6)),
            ({"theta": 5e5}, RopeConfig(theta=5e5)),
            ({"extend_method": "None", "scaling_factor": 8.0}, RopeConfig()),
            ({"extend_method": "PI", "scaling_factor": 2.0}, RopeConfig(kind="linear", factor=2.0)),
            ({"extend_method": "LLAMA3", "scaling_factor": LLAMA3}, LLAMA3_ROPE),
            ({"extend_method": "LINEAR", "scaling_factor": {"factor": 2.0}}, RopeConfig(kind="linear", factor=2.0)),
            ({"extend_method": "NTK", "scaling_factor": 2.0}, RopeConfig(theta=20000.0)),
            ({"rope_ratio": 50}, RopeConfig(theta=500000.0)),
            ({"rope_scaling": {"type": "ntk", "factor": 3.0}}, RopeConfig(kind="ntk", factor=3.0)),
            (
                {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
                RopeConfig(kind="dynamic", factor=2.0, original_max_positions=256, length=256),
            ),
            ({"rope_scaling": YARN}, YARN_ROPE),
            ({"extend_method": "YARN", "scaling_factor": YARN}, YARN_ROPE),
            (
                {"rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5}},
                replace(YARN_ROPE, attention_factor=(0.1 * math.log(4) + 1) / (0.05 * math.log(4) + 1)),
            ),
            ({"rope_scaling": {**YARN, "attention_factor": 1.5}}, replace(YARN_ROPE, attention_factor=1.5)),
            ({"original_max_position_embeddings": 64, "rope_scaling": LONGROPE}, LONGROPE_ROPE),
            ({"original_max_position_embeddings": 64, "rope_scaling": {**LONGROPE, "type": "su"}}, LONGROPE_ROPE),
            # Up to the original length the short factors, and still the magnitude.
            (
                {"original_max_position_embeddings": 64, "rope_scaling": LONGROPE, "seq_length": 64},
                replace(LONGROPE_ROPE, length=64),
            ),
        ],
    )
    def test_spellings(self, keys: dict, rope: RopeConfig) -> None:
        """transformers 4 and 5, older `type`, and MindFormers."""
        assert read(**keys).rope == rope

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            (
                {"rope_scaling": {"rope_type": "xpos", "factor": 4}},
                "rope_type 'xpos' is not supported; accepted: .*llama3, yarn",
            ),
            (
                {"rope_parameters": {"rope_type": "longrope"}},
                "'short_factor' is None; it must be a list of 4 positive numbers",
            ),
            ({"rope_scaling": {"type": "su", "short_factor": [1, 1, 1, 1], "long_factor": [1, 2, 3]}}, "'long_factor'"),
            ({"rope_scaling": {"type": "su", "short_factor": [1, 1, 1, 0], "long_factor": [1] * 4}}, "'short_factor'"),
            ({"rope_scaling": {"type": "yarn", "factor": 4, "truncate": 1}}, "'truncate' is 1"),
            ({"rope_scaling": {"rope_type": ["linear"]}}, "rope_type '.*' is not supported"),
            ({"rope_scaling": "linear"}, "rope_scaling"),
            ({"rope_scaling": {"type": "linear", "factor": 0}}, "'factor' is 0; it must be a positive number"),
            ({"rope_scaling": {"type": "linear", "factor": "4"}}, "'factor' is '4'"),
            ({"rope_theta": -1}, "'rope_theta' is -1"),
            (
                {"extend_method": "XPOS", "scaling_factor": 2.0},
                "extend_method 'XPOS' is not supported; accepted: .*YARN",
            ),
            ({"extend_method": "LLAMA3", "scaling_factor": 8.0}, "scaling_factor"),
            (
                {"extend_method": "NTK", "scaling_factor": {"factor": 2.0}},
                "'scaling_factor' .* must be a positive number",
            ),
            ({"partial_rotary_factor": 1.5}, "'partial_rotary_factor' is 1.5"),
            ({"partial_rotary_factor": 0.1}, "'partial_rotary_factor' 0.1 of a head of 8 does not give whole pairs"),
            ({"extend_method": "LLAMA3"}, "scaling_factor"),
            ({"extend_method": "PI"}, "scaling_factor"),
        ],
    )
    def test_invalid_configs_are_rejected(self, keys: dict, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            read(**keys)

    @pytest.mark.parametrize(
        ("keys", "length"),
        [
            ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 256),
            ({"rope_scaling": {"type": "linear", "factor": 4.0}, "seq_length": 2000}, 1024),
            ({"rope_scaling": {"type": "dynamic", "factor": 2.0}, "seq_length": 500}, 500),
            ({"rope_scaling": YARN, "seq_length": 2000}, 256),
            ({"rope_scaling": {"type": "yarn", "factor": 4.0}, "seq_length": 2000}, 1024),
            ({"rope_scaling": {"rope_type": "llama3", **LLAMA3}, "seq_length": 2000}, 256),
        ],
    )
    def test_scaling_allows_longer_sequences_if_requested(self, keys: dict, length: int) -> None:
        assert read(**keys).context_length == length

    @pytest.mark.parametrize("dim", [16, 64, 96, 128])
    def test_frequencies_of_scaled_kinds(self, dim: int) -> None:
        """Each rule, pair by pair, in another form than the code's."""
        plain = [500000.0 ** -(2 * i / dim) for i in range(dim // 2)]
        ntk = RopeConfig(500000.0, "ntk", 4.0).inverse_frequencies(dim)
        assert ntk[0] == pytest.approx(1) and ntk[-1] == pytest.approx(plain[-1] / 4, rel=1e-4)
        short, long = (RopeConfig(500000.0, "dynamic", 4.0, 1.0, 4.0, 8192, length=n) for n in (4096, 16384))
        np.testing.assert_allclose(short.inverse_frequencies(dim), plain, rtol=1e-5)
        # Of a context twice as long 4 * 2 - 3 is left of the factor, as far as the longest wave goes.
        assert long.inverse_frequencies(dim)[-1] == pytest.approx(plain[-1] / 5, rel=1e-4)
        yarn = RopeConfig(500000.0, "yarn", 8.0, original_max_positions=8192, truncate=False).inverse_frequencies(dim)
        for found, frequency in zip(yarn, plain, strict=True):
            turns = 8192 * frequency / (2 * math.pi)
            # By the number of the pair, between the pairs that turn 32 times and once.
            blend = np.clip(math.log(32 / turns) / math.log(32), 0, 1)
            assert found == pytest.approx(frequency * (1 - blend + blend / 8), rel=1e-4)

    def test_longrope_takes_the_factors_of_its_length(self) -> None:
        for length, factors in ((64, (1.0, 1.1, 1.2, 1.5)), (65, (1.0, 2.0, 3.0, 4.0))):
            found = replace(LONGROPE_ROPE, length=length).inverse_frequencies(8)
            np.testing.assert_allclose(found, RopeConfig().inverse_frequencies(8) / np.array(factors), rtol=1e-6)

    @pytest.mark.parametrize(
        ("trained", "base", "length", "factor", "magnitude"),
        [
            (8192, 8192, 8192, 1, 1.0),
            (8192, 8192, 4096, 1, 1.0),
            (32768, 8192, 8192, 7, 1.0),
            (8192, 8192, 16384, 3, 1 + 0.1 * math.log(2)),
        ],
    )
    def test_telechats_rule(self, trained: int, base: int, length: int, factor: int, magnitude: float) -> None:
        keys = {"training_seqlen": trained, "base_seqlen": base, "seq_length": length, "max_position_embeddings": 16384}
        rope = family("TelechatForCausalLM", **keys).rope
        assert (rope.kind, rope.factor, rope.attention_factor) == ("ntk", factor, pytest.approx(magnitude))

    def test_plain_frequencies(self) -> None:
        expected = [10000.0 ** -(2 * i / 16) for i in range(8)]
        np.testing.assert_allclose(RopeConfig().inverse_frequencies(16), expected, rtol=1e-6)
        np.testing.assert_allclose(
            RopeConfig(kind="linear", factor=4.0).inverse_frequencies(16), np.divide(expected, 4), rtol=1e-6
        )

    @pytest.mark.parametrize("dim", [16, 64, 128])
    def test_llama3_frequencies(self, dim: int) -> None:
        """Llama 3.1's rule, frequency by frequency: long waves are stretched, short ones kept, the rest blended."""
        rope = RopeConfig(500000.0, "llama3", 8.0, 1.0, 4.0, 8192)
        kinds = set()
        for i, found in enumerate(rope.inverse_frequencies(dim)):
            plain = 500000.0 ** -(2 * i / dim)
            wavelength = 2 * math.pi / plain
            if wavelength > 8192 / 1.0:
                kind, expected = "stretched", plain / 8
            elif wavelength < 8192 / 4.0:
                kind, expected = "kept", plain
            else:
                smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
                kind, expected = "blended", (1 - smooth) * plain / 8 + smooth * plain
            kinds.add(kind)
            assert found == pytest.approx(expected, rel=1e-5)
        assert kinds == {"stretched", "kept", "blended"} or dim == 16


class TestIntermediateSize:
    @pytest.mark.parametrize(
        ("hidden", "multiple_of", "multiplier", "size"),
        [
            (4096, 256, None, 11008),
            (5120, 256, None, 13824),
            (8192, 4096, 1.3, 28672),
            (4096, 1024, 1.3, 14336),
            (1024, 8, 1.3, 3576),  # here MindFormers' 0.01 more makes a difference
        ],
    )
    def test_llamas_rule(self, hidden: int, multiple_of: int, multiplier: float | None, size: int) -> None:
        """7b, 13b and 70b of Llama 2, 8b of Llama 3, and a size of no model."""
        given = {"hidden_size": hidden, "multiple_of": multiple_of, "ffn_dim_multiplier": multiplier}
        assert read(intermediate_size="absent", num_attention_heads=32, **given).intermediate_size == size

    def test_explicit_settings_win(self) -> None:
        assert read(intermediate_size=50, multiple_of=256).intermediate_size == 50

    def test_neither_setting_is_given(self) -> None:
        with pytest.raises(ConfigError, match="neither 'intermediate_size' nor 'multiple_of'"):
            read(intermediate_size="absent")


class TestSizes:
    def test_mindformers_spelling_is_the_same_model(self) -> None:
        theirs = {
            "type": "LlamaConfig",
            "vocab_size": 128,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_layers": 3,
            "num_heads": 4,
            "n_kv_heads": 2,
            "max_position_embedding": 256,
            "rms_norm_eps": 1e-5,
            "theta": 10000.0,
        }
        assert model_config_from(theirs, "predict.yaml") == read()
        assert model_config_from({**theirs, "n_kv_heads": None}, "predict.yaml").num_kv_heads == 4
        assert model_config_from({**theirs, "qkv_has_bias": True}, "predict.yaml").qkv_bias

    @pytest.mark.parametrize(
        ("keys", "length"),
        [
            ({}, 256),
            ({"seq_length": 100}, 100),
            ({"seq_length": 1000}, 256),
            ({"max_position_embeddings": "absent", "seq_length": 1000}, 1000),
        ],
    )
    def test_context_length(self, keys: dict, length: int) -> None:
        assert read(**keys).context_length == length

    def test_defaults(self) -> None:
        config = read(num_key_value_heads="absent", rms_norm_eps="absent", head_dim=None)
        assert (config.num_kv_heads, config.norm_eps, config.head_dim) == (4, 1e-6, 8)
        assert not (config.tie_embeddings or config.qkv_bias or config.output_bias or config.mlp_bias or config.qk_norm)
        assert config.windows == (None, None, None)

    def test_a_separate_head_dim(self) -> None:
        config = read(head_dim=24, num_attention_heads=3, num_key_value_heads=1)
        assert (config.query_size, config.kv_size, config.group_size) == (72, 24, 3)

    def test_biases(self) -> None:
        llama = read(attention_bias=True, mlp_bias=True)
        assert (llama.qkv_bias, llama.output_bias, llama.mlp_bias) == (True, True, True)
        qwen = family("Qwen2ForCausalLM")
        assert (qwen.qkv_bias, qwen.output_bias, qwen.mlp_bias) == (True, False, False)
        qwen3 = family("Qwen3ForCausalLM", attention_bias=True)
        assert (qwen3.qkv_bias, qwen3.output_bias, qwen3.qk_norm) == (True, True, True)

    @pytest.mark.parametrize("path", sorted(GOLDENS.glob("*/config.json")), ids=lambda path: path.parent.name)
    def test_number_of_parameters(self, path: Path) -> None:
        """That of the matrices and norms; biases are left out."""
        from inference.checkpoint.open import open_checkpoint

        config = model_config_from(json.loads(path.read_text()), str(path))
        stored = open_checkpoint(path.parent).values()
        small = ("bias", ".q_norm.weight", ".k_norm.weight", ".query_layernorm.weight", ".key_layernorm.weight")
        assert config.num_parameters == sum(math.prod(t.shape) for t in stored if not t.name.endswith(small))

    def test_families_with_special_cases(self) -> None:
        gemma = family("Gemma2ForCausalLM", intermediate_size=48, sliding_window=12, query_pre_attn_scalar=24)
        assert (gemma.windows, gemma.head_dim, gemma.attention_scale) == ((12, None, 12), 256, 24**-0.5)
        assert (gemma.softcap, gemma.logit_softcap, gemma.embedding_scale) == (50.0, 30.0, 32**0.5)
        assert gemma.tie_embeddings and gemma.post_norms and gemma.activation == "gelu_tanh"
        assert family("Gemma2ForCausalLM", attn_logit_softcapping=None).softcap is None
        with pytest.raises(ConfigError, match="'rope_parameters' is .* one for each kind of layer"):
            family("Gemma3ForCausalLM", rope_parameters={"full_attention": {}, "sliding_attention": 3})
        gemma = family("Gemma3ForCausalLM", sliding_window=12, num_hidden_layers=6, rope_local_base_freq=100.0)
        assert gemma.windows == (12,) * 5 + (None,) and gemma.qk_norm and gemma.softcap is None
        assert [gemma.rope_of(layer).theta for layer in (0, 5)] == [100.0, 1e6]
        gpt2 = family("GPT2LMHeadModel", intermediate_size="absent", n_inner=None)
        assert (gpt2.intermediate_size, gpt2.position_rows, gpt2.rotary_size) == (128, 256, 0)
        assert gpt2.layer_norm and not gpt2.gated and gpt2.tie_embeddings and gpt2.activation == "gelu_tanh"
        rotary, alibi = (
            family("BaichuanForCausalLM", **keys)
            for keys in ({}, {"max_position_embeddings": "absent", "model_max_length": 99})
        )
        assert (rotary.alibi_slopes, rotary.rotary_size, alibi.rotary_size) == (None, 8, 0)
        assert alibi.alibi_slopes
        assert alibi.context_length == 99 and alibi.storage.normalized_head
        assert not family("BaiChuanForCausalLM", vocab_size=64000).storage.normalized_head
        glm = family("Glm4ForCausalLM", head_dim=16)
        assert (glm.rotary_size, glm.post_norms, glm.storage.pairs, glm.output_bias) == (8, True, "neighbors", False)
        assert family("chatglm", use_rearrange_rope=True).storage.pairs == "spread"

    def test_mindformers_spelling_of_other_families(self) -> None:
        theirs = {"type": "GPT2Config", "seq_length": 256, "vocab_size": 128, "hidden_size": 32, "num_layers": 2}
        theirs |= {"num_heads": 4, "expand_ratio": 4, "hidden_act": "gelu", "layernorm_epsilon": 1e-5}
        ours = {"architectures": ["GPT2LMHeadModel"], "n_positions": 256, "vocab_size": 128, "n_embd": 32, "n_layer": 2}
        ours |= {"n_head": 4, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5}
        assert model_config_from(theirs, "predict.yaml") == model_config_from(ours, "config.json")
        golden = GOLDENS / "chatglm3/config.json"
        theirs = {**json.loads(golden.read_text()), "type": "ChatGLM2Config"}
        del theirs["architectures"], theirs["model_type"]
        assert model_config_from(theirs, "predict.yaml") == model_config_from(
            json.loads(golden.read_text()), "config.json"
        )
        assert model_config_from({**theirs, "multi_query_attention": False}, "predict.yaml").num_kv_heads == 4

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            ({"vocab_size": "absent"}, "'vocab_size' is missing"),
            ({"hidden_size": None}, "'hidden_size' is missing"),
            ({"hidden_size": "32"}, "'hidden_size' is '32'; it must be an integer from 8"),
            ({"hidden_size": 32.0}, "'hidden_size' is 32.0"),
            ({"num_hidden_layers": 0}, "'num_hidden_layers' is 0"),
            ({"num_hidden_layers": True}, "'num_hidden_layers' is True"),
            (
                {"num_key_value_heads": 3},
                r"'num_key_value_heads' is 3; it must be a divisor of num_attention_heads \(4\)",
            ),
            ({"num_attention_heads": 5, "num_key_value_heads": 5}, r"divisor of hidden_size \(32\), or head_dim must"),
            ({"head_dim": 7}, "'head_dim' is 7; it must be even"),
            ({"hidden_act": "relu"}, "'hidden_act' is 'relu'; it must be one of silu, .*gelu_new"),
            ({"position_embedding_type": "xpos"}, "'position_embedding_type' is 'xpos'; it must be one of rope"),
            ({"rmsnorm": False}, "'rmsnorm' is False; it must be true"),
            ({"scale_attn_by_inverse_layer_idx": True}, "'scale_attn_by_inverse_layer_idx' is True; it must be false"),
            ({"attn_logit_softcapping": 0}, "'attn_logit_softcapping' is 0; it must be a positive number"),
            ({"rms_norm_eps": -1e-5}, "'rms_norm_eps' is -1e-05"),
            ({"rms_norm_eps": math.nan}, "'rms_norm_eps' is nan"),
            ({"tie_word_embeddings": "yes"}, "'tie_word_embeddings' is 'yes'; it must be true or false"),
            ({"max_position_embeddings": "absent"}, "neither 'max_position_embeddings' nor 'seq_length'"),
            ({"seq_length": -1}, "'seq_length' is -1"),
        ],
    )
    def test_invalid_configs_are_rejected(self, keys: dict, message: str) -> None:
        with pytest.raises(ConfigError, match=f"config.json.*{message}"):
            read(**keys)

    @given(
        st.sampled_from([*LLAMA, "rope_scaling", "rope_parameters", "layer_types", "sliding_window", "head_dim"]),
        st.recursive(
            st.none() | st.booleans() | st.integers(-9, 99) | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["rope_type", "factor", "rope_theta"]), inner)
            ),
        ),
        st.sampled_from(sorted(ARCHITECTURES)),
    )
    @examples(300)
    def test_any_value_is_read_or_rejected(self, key: str, value: object, name: str) -> None:
        values = {**LLAMA, "architectures": [name], "use_sliding_window": True, "sliding_window": 4, key: value}
        try:
            config = model_config_from(values, "config.json")
        except ConfigError as error:
            assert "config.json" in str(error)
        else:
            assert isinstance(config, T5Config) or len(config.windows) == config.num_layers


DEEPSEEK: dict = {
    "kv_lora_rank": 20,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "v_head_dim": 12,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 20,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 1,
}


def experts(name: str, **changes: object) -> ExpertsConfig:
    config = family(name, **changes).experts
    assert config is not None
    return config


class TestExperts:
    def test_mixtral(self) -> None:
        found = experts("MixtralForCausalLM", num_local_experts=8)
        assert found == ExpertsConfig(Routing(8, 2, normalize=True), 48, 0, False, False, (True,) * 3)

    def test_qwen(self) -> None:
        keys = {"num_experts": 6, "moe_intermediate_size": 20, "mlp_only_layers": [1], "norm_topk_prob": True}
        found = experts("Qwen3MoeForCausalLM", num_experts_per_tok=4, **keys)
        assert found == ExpertsConfig(Routing(6, 4, normalize=True), 20, 0, False, False, (True, False, True))
        found = experts("Qwen2MoeForCausalLM", **keys, decoder_sparse_step=3, shared_expert_intermediate_size=33)
        assert found == ExpertsConfig(Routing(6, 4, normalize=True), 20, 33, True, False, (False, False, True))

    def test_deepseek(self) -> None:
        found = experts("DeepseekV3ForCausalLM", **DEEPSEEK, n_shared_experts=2, routed_scaling_factor=2.5)
        routing = Routing(8, 3, "sigmoid", True, 2.5, groups=4, chosen_groups=2, group_best=2)
        assert found == ExpertsConfig(routing, 20, 40, False, True, (False, True, True))
        greedy = {**DEEPSEEK, "topk_method": "greedy"}
        found = experts("DeepseekV2ForCausalLM", **greedy)
        assert found == ExpertsConfig(Routing(8, 3), 20, 0, False, False, (False, True, True))
        limited = {**DEEPSEEK, "topk_method": "group_limited_greedy"}
        assert experts("DeepseekV2ForCausalLM", **limited).routing == Routing(8, 3, groups=4, chosen_groups=2)

    @pytest.mark.parametrize(
        "keys", [{"num_local_experts": None}, {"num_experts": 4, "mlp_only_layers": [0, 1, 2]}, {"expert_num": 1}]
    )
    def test_none(self, keys: dict) -> None:
        assert family("Qwen3MoeForCausalLM", **keys).experts is None

    def test_moe_config_of_mindformers(self) -> None:
        section = {"expert_num": 8, "num_experts_chosen": 2, "capacity_factor": 1.1, "use_gmm": True}
        assert read(moe_config=section).experts == experts("MixtralForCausalLM", num_local_experts=8)
        assert read(moe_config={"expert_num": 1, "num_experts_chosen": 1}).experts is None
        deepseek = {**DEEPSEEK, "n_routed_experts": None, "num_experts_per_tok": None}
        section = {"expert_num": 8, "num_experts_chosen": 3, "shared_expert_num": 1, "use_gating_sigmoid": True}
        found = family("DeepseekV3ForCausalLM", **deepseek, moe_config=section)
        assert found == family("DeepseekV3ForCausalLM", **DEEPSEEK, n_shared_experts=1)

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            ({"num_experts": 0}, "'num_experts' is 0; it must be an integer from 1 to 65536"),
            ({"num_experts": 8, "num_experts_per_tok": 9}, r"'num_experts_per_tok' is 9; .*choose from \(8\)"),
            ({"num_experts": 8, "mlp_only_layers": 1}, "'mlp_only_layers' is 1; it must be a list"),
            ({"num_experts": 8, "scoring_func": "tanh"}, "'scoring_func' is 'tanh'; .*softmax, sigmoid"),
            ({"num_experts": 8, "topk_method": "best"}, "'topk_method' is 'best'; .*greedy, group_limited_greedy"),
            ({"num_experts": 8, "moe_intermediate_size": "20"}, "'moe_intermediate_size' is '20'"),
            ({"num_experts": 8, "n_shared_experts": -1}, "'n_shared_experts' is -1"),
        ],
    )
    def test_invalid_configs_are_rejected(self, keys: dict, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            family("Qwen3MoeForCausalLM", **keys)

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            ({"n_group": 3}, r"'n_group' is 3; it must be a divisor of the number of experts \(8\)"),
            ({"n_group": 8, "topk_group": 2}, "that leaves 2 or more each"),
            ({"topk_group": 5}, r"'topk_group' is 5; it must be at most n_group \(4\)"),
            ({"topk_group": 1}, r"'num_experts_per_tok' is 3; it must be at most .* choose from \(2\)"),
        ],
    )
    def test_rejected_groups(self, keys: dict, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            family("DeepseekV3ForCausalLM", **{**DEEPSEEK, **keys})


class TestLatent:
    def test_sizes(self) -> None:
        config = family("DeepseekV3ForCausalLM", **DEEPSEEK)
        assert config.latent == LatentConfig(20, 24, 10, 6, 12, 0.25, True)
        assert (config.head_dim, config.cache_size, config.draft_layers) == (6, 26, 1)
        assert block_bytes(config, 16) == 3 * 16 * 26 * 4 and block_bytes(config, 16, "float16") == 3 * 16 * 26 * 2
        assert block_bytes(config, 16, "int8") == 3 * 16 * (26 + 2 * 4)
        plain = family("DeepseekV2ForCausalLM", **{**DEEPSEEK, "q_lora_rank": None, "rope_interleave": False})
        assert plain.latent == LatentConfig(20, 0, 10, 6, 12, 0.25, False)

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            ({"kv_lora_rank": None}, "'kv_lora_rank' is missing"),
            ({"q_lora_rank": 0}, "'q_lora_rank' is 0"),
            ({"qk_rope_head_dim": 7}, "'qk_rope_head_dim' is 7; it must be even"),
            ({"v_head_dim": None}, "'v_head_dim' is missing"),
            ({"num_nextn_predict_layers": -1}, "'num_nextn_predict_layers' is -1"),
        ],
    )
    def test_invalid_configs_are_rejected(self, keys: dict, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            family("DeepseekV3ForCausalLM", **{**DEEPSEEK, **keys})


class TestWindows:
    @pytest.mark.parametrize(
        ("name", "keys", "windows"),
        [
            ("MistralForCausalLM", {"sliding_window": 12}, (12, 12, 12)),
            ("MistralForCausalLM", {"sliding_window": None}, (None, None, None)),
            ("MistralForCausalLM", {}, (None, None, None)),
            ("LlamaForCausalLM", {"sliding_window": 12}, (None, None, None)),
            ("Qwen2ForCausalLM", {"sliding_window": 12}, (None, None, None)),
            ("Qwen2ForCausalLM", {"sliding_window": 12, "use_sliding_window": False}, (None, None, None)),
            ("Qwen2ForCausalLM", {"sliding_window": 12, "use_sliding_window": True}, (None, None, None)),
            (
                "Qwen2ForCausalLM",
                {"sliding_window": 12, "use_sliding_window": True, "max_window_layers": 1},
                (None, 12, 12),
            ),
            (
                "Qwen3ForCausalLM",
                {"sliding_window": 12, "use_sliding_window": True, "max_window_layers": 0},
                (12, 12, 12),
            ),
            (
                "Qwen3ForCausalLM",
                {
                    "sliding_window": 12,
                    "use_sliding_window": True,
                    "max_window_layers": 0,
                    "layer_types": ["full_attention", "sliding_attention", "full_attention"],
                },
                (None, 12, None),
            ),
        ],
    )
    def test_layers_with_a_sliding_window(self, name: str, keys: dict, windows: tuple) -> None:
        assert family(name, **keys).windows == windows

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            ({"layer_types": ["full_attention"]}, "'layer_types' is .*a list with an entry for each of the 3 layers"),
            ({"layer_types": "full_attention"}, "'layer_types' is 'full_attention'"),
            ({"layer_types": ["full_attention", "chunked_attention", "full_attention"]}, "chunked_attention"),
            ({"sliding_window": 0}, "'sliding_window' is 0"),
            ({"max_window_layers": "all"}, "'max_window_layers' is 'all'"),
        ],
    )
    def test_invalid_configs_are_rejected(self, keys: dict, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            family("Qwen2ForCausalLM", **{"sliding_window": 12, "use_sliding_window": True, **keys})


class TestArchitecture:
    @pytest.mark.parametrize("name", [*ARCHITECTURES, *ALIASES])
    def test_every_name(self, name: str) -> None:
        expected = ALIASES.get(name, name)
        sizes = {**DEEPSEEK, "architectures": "absent"} if name.lower().startswith("deepseek") else {}
        assert read(**{**sizes, "architectures": [name]}).architecture == expected
        assert read(**{**sizes, "architectures": "absent", "model_type": name}).architecture == expected
        assert read(**{**sizes, "architectures": "absent", "type": name}).architecture == expected
        assert read(**{**sizes, "architectures": name}).architecture == expected
        assert model_config_from({**LLAMA, **sizes}, "config.json", name).architecture == expected

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            (
                {"architectures": ["LlamaForCasualLM"]},
                "'LlamaForCasualLM' is not supported; did you mean 'LlamaForCausalLM'",
            ),
            ({"architectures": ["BertForMaskedLM"]}, "is not supported; .*this release runs LlamaForCausalLM"),
            ({"architectures": []}, "no architecture is named"),
            ({"architectures": {}}, "no architecture is named"),
            ({"architectures": "absent"}, "no architecture is named"),
            ({"architectures": [None]}, "no architecture is named"),
        ],
    )
    def test_invalid_configs_are_rejected(self, keys: dict, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            read(**keys)


class TestLayOver:
    def test_a_yaml_wins_in_either_spelling(self) -> None:
        merged = lay_over(LLAMA, {"num_layers": 2, "theta": 3.0, "seq_length": 64})
        config = model_config_from(merged, "both")
        assert (config.num_layers, config.rope.theta, config.context_length) == (2, 3.0, 64)

    @pytest.mark.parametrize(
        ("given", "rope"),
        [
            ({}, LLAMA3_ROPE),
            ({"theta": 3.0}, RopeConfig(3.0, "llama3", 8.0, 1.0, 4.0, 8192)),
            ({"extend_method": "PI", "scaling_factor": 2.0}, RopeConfig(kind="linear", factor=2.0)),
            ({"rope_parameters": {"rope_theta": 7.0}}, RopeConfig(theta=7.0)),
        ],
    )
    def test_over_transformers_5(self, given: dict, rope: RopeConfig) -> None:
        own = {**LLAMA, "rope_parameters": {"rope_type": "llama3", "rope_theta": 10000.0, **LLAMA3}}
        assert model_config_from(lay_over(own, given), "both").rope == rope
        assert own["rope_parameters"]["rope_theta"] == 10000.0
