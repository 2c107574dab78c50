"""Architectures as config.json and YAML files state them: every spelling, Llama's size rule, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.errors import ConfigError
from inference.models.config import ModelConfig, RopeConfig, lay_over
from inference.models.registry import ALIASES, ARCHITECTURES, model_config_from

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
LLAMA3_ROPE = RopeConfig(10000.0, "llama3", 8.0, 1.0, 4.0, 8192)


def read(**changes: object) -> ModelConfig:
    values = {**LLAMA, **changes}
    return model_config_from({key: value for key, value in values.items() if value != "absent"}, "config.json")


def family(name: str, **changes: object) -> ModelConfig:
    return read(architectures=[name], **changes)


@pytest.mark.parametrize("path", sorted(GOLDENS.glob("*/config.json")), ids=lambda path: path.parent.name)
def test_sizes_of_the_golden_models(path: Path) -> None:
    values = json.loads(path.read_text())
    config = model_config_from(values, str(path))
    assert config.hidden_size == values["hidden_size"] and config.num_layers == values["num_hidden_layers"]
    assert config.num_heads == 4 and config.vocab_size == 128 and config.context_length == 256
    assert config.tie_embeddings == values["tie_word_embeddings"]
    assert config.query_size == config.num_heads * config.head_dim
    assert config.group_size == config.num_heads // config.num_kv_heads
    assert config.qk_norm == (values["model_type"] == "qwen3") and config.qkv_bias == (values["model_type"] == "qwen2")


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
        ],
    )
    def test_spellings(self, keys: dict, rope: RopeConfig) -> None:
        """transformers 4 and 5, older `type`, and MindFormers."""
        assert read(**keys).rope == rope

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            (
                {"rope_scaling": {"rope_type": "yarn", "factor": 4}},
                "rope_type 'yarn' is not supported; accepted: .*llama3",
            ),
            ({"rope_scaling": {"type": "dynamic"}}, "rope_type 'dynamic' is not supported"),
            ({"rope_parameters": {"rope_type": "longrope"}}, "rope_type 'longrope' is not supported"),
            ({"rope_scaling": {"rope_type": ["linear"]}}, "rope_type '.*' is not supported"),
            ({"rope_scaling": "linear"}, "rope_scaling"),
            ({"rope_scaling": {"type": "linear", "factor": 0}}, "'factor' is 0; it must be a positive number"),
            ({"rope_scaling": {"type": "linear", "factor": "4"}}, "'factor' is '4'"),
            ({"rope_theta": -1}, "'rope_theta' is -1"),
            ({"extend_method": "NTK", "scaling_factor": 2.0}, "extend_method 'NTK' is not supported"),
            ({"extend_method": "LLAMA3", "scaling_factor": 8.0}, "scaling_factor"),
            ({"extend_method": "LLAMA3"}, "scaling_factor"),
            ({"extend_method": "PI"}, "scaling_factor"),
        ],
    )
    def test_what_is_refused(self, keys: dict, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            read(**keys)

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

    def test_what_is_given_wins(self) -> None:
        assert read(intermediate_size=50, multiple_of=256).intermediate_size == 50

    def test_neither_is_given(self) -> None:
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

    def test_a_head_dim_of_its_own(self) -> None:
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
        from inference.models.checkpoint import open_checkpoint

        config = model_config_from(json.loads(path.read_text()), str(path))
        stored = open_checkpoint(path.parent).values()
        small = ("bias", "q_norm.weight", "k_norm.weight")
        assert config.num_parameters == sum(math.prod(t.shape) for t in stored if not t.name.endswith(small))

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            ({"vocab_size": "absent"}, "'vocab_size' is missing"),
            ({"hidden_size": None}, "'hidden_size' is missing"),
            ({"hidden_size": "32"}, "'hidden_size' is '32'; it must be a positive integer"),
            ({"hidden_size": 32.0}, "'hidden_size' is 32.0"),
            ({"num_hidden_layers": 0}, "'num_hidden_layers' is 0"),
            ({"num_hidden_layers": True}, "'num_hidden_layers' is True"),
            (
                {"num_key_value_heads": 3},
                r"'num_key_value_heads' is 3; it must be a divisor of num_attention_heads \(4\)",
            ),
            ({"num_attention_heads": 5, "num_key_value_heads": 5}, r"divisor of hidden_size \(32\), or head_dim must"),
            ({"head_dim": 7}, "'head_dim' is 7; it must be even"),
            ({"hidden_act": "gelu"}, "'hidden_act' is 'gelu'; it must be one of silu"),
            ({"rms_norm_eps": -1e-5}, "'rms_norm_eps' is -1e-05"),
            ({"rms_norm_eps": math.nan}, "'rms_norm_eps' is nan"),
            ({"tie_word_embeddings": "yes"}, "'tie_word_embeddings' is 'yes'; it must be true or false"),
            ({"max_position_embeddings": "absent"}, "neither 'max_position_embeddings' nor 'seq_length'"),
            ({"seq_length": -1}, "'seq_length' is -1"),
        ],
    )
    def test_what_is_refused(self, keys: dict, message: str) -> None:
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
    @settings(max_examples=300)
    def test_any_value_is_read_or_refused(self, key: str, value: object, name: str) -> None:
        values = {**LLAMA, "architectures": [name], "use_sliding_window": True, "sliding_window": 4, key: value}
        try:
            config = model_config_from(values, "config.json")
        except ConfigError as error:
            assert "config.json" in str(error)
        else:
            assert len(config.windows) == config.num_layers


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
    def test_which_layers_slide(self, name: str, keys: dict, windows: tuple) -> None:
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
    def test_what_is_refused(self, keys: dict, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            family("Qwen2ForCausalLM", **{"sliding_window": 12, "use_sliding_window": True, **keys})


class TestArchitecture:
    @pytest.mark.parametrize("name", [*ARCHITECTURES, *ALIASES])
    def test_every_name(self, name: str) -> None:
        expected = ALIASES.get(name, name)
        assert family(name).architecture == expected
        assert read(architectures="absent", model_type=name).architecture == expected
        assert read(architectures="absent", type=name).architecture == expected
        assert read(architectures=name).architecture == expected
        assert model_config_from(LLAMA, "config.json", name).architecture == expected

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            (
                {"architectures": ["LlamaForCasualLM"]},
                "'LlamaForCasualLM' is not supported; did you mean 'LlamaForCausalLM'",
            ),
            ({"architectures": ["T5ForConditionalGeneration"]}, "is not supported; this release runs LlamaForCausalLM"),
            ({"architectures": []}, "no architecture is named"),
            ({"architectures": {}}, "no architecture is named"),
            ({"architectures": "absent"}, "no architecture is named"),
            ({"architectures": [None]}, "no architecture is named"),
        ],
    )
    def test_what_is_refused(self, keys: dict, message: str) -> None:
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
