"""`model.model_config`: both spellings, other names of a key, and real config.json files."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path

import pytest

from inference.config import Override, load_config, parse_override
from inference.config.error_messages import known_keys
from inference.config.key_aliases import MOE_CONFIG_ALIASES
from inference.config.known_keys import MODEL, NEGATED, NOT_ACTED_ON, RENAMED, RIVALS, SYNONYMS
from inference.config.model_settings import ARCHITECTURE_KEYS, DEVICE_KEYS, GENERATION_KEYS, ModelSettings
from inference.errors import ConfigError
from inference.models.architecture.config_aliases import lay_over
from inference.models.architecture.registry import model_config_from

GOLDENS = sorted((Path(__file__).parents[1] / "goldens").glob("*/config.json"))


def settings_of(**model: object) -> ModelSettings:
    return load_config({"model": {"model_config": model}}).model.model_config


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.parent.name)
def test_every_key_of_a_config_json_is_known(path: Path) -> None:
    given = json.loads(path.read_text())
    architecture = settings_of(**given).given_architecture()
    named = {RENAMED.get((*MODEL, name), (name,))[-1]: value for name, value in given.items()}
    # A null under another name says nothing.
    named = {name: value for name, value in named.items() if value is not None or name in given}
    assert architecture == {name: value for name, value in named.items() if name in ARCHITECTURE_KEYS}
    assert {"hidden_size", "vocab_size"} <= architecture.keys()
    assert {"num_hidden_layers", "num_layers"} & architecture.keys()


def test_config_files_exist() -> None:
    assert len(GOLDENS) >= 5


def test_explicit_null_is_given() -> None:
    assert settings_of(sliding_window=None).given_architecture() == {"sliding_window": None}
    assert settings_of().given_architecture() == {}


def test_plain_values() -> None:
    settings = settings_of(architectures="LlamaForCausalLM", layer_types=["full_attention"], theta=500000)
    assert settings.given() == {
        "architectures": ["LlamaForCausalLM"],
        "layer_types": ["full_attention"],
        "theta": 500000.0,
    }
    assert isinstance(settings.theta, float)


@pytest.mark.parametrize(("old", "new"), [(old[-1], new[-1]) for old, new in RENAMED.items() if old[:2] == MODEL])
def test_other_names(old: str, new: str) -> None:
    by_name = {"hidden_act": "silu", "rms_norm_eps": 0.5, "rope_theta": 2}
    value = "float16" if new.endswith("type") else True if new.endswith("bias") else by_name.get(new, 1)
    assert settings_of(**{old: value}).given() == {new: value}


def test_untied_is_not_tied() -> None:
    assert settings_of(untie_embeddings_and_output_weights=True).tie_word_embeddings is False


def test_llama3_scaling_of_mindformers() -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    settings = settings_of(extend_method="LLAMA3", scaling_factor=scaling)
    assert settings.given_architecture() == {"extend_method": "LLAMA3", "scaling_factor": scaling}


def test_generation_settings_are_not_architecture() -> None:
    settings = settings_of(top_k=3, max_decode_length=9, eos_token_id=[1, 2], pad_token_id=-1, do_sample=None)
    assert settings.given_architecture() == {}
    assert settings.generation().given() == {"top_k": 3, "max_length": 9, "eos_token_id": (1, 2)}


def test_use_past_reaches_generation() -> None:
    override = parse_override("model.model_config.use_past=False", "--use_past")
    assert load_config({}, overrides=[override]).generation().use_past is False


def test_tables_name_keys_that_exist_and_each_key_once() -> None:
    fields = set(ModelSettings.model_fields)
    assert fields >= ARCHITECTURE_KEYS | GENERATION_KEYS | DEVICE_KEYS
    assert not ARCHITECTURE_KEYS & GENERATION_KEYS
    assert not NOT_ACTED_ON[MODEL] & fields
    for section, names in NOT_ACTED_ON.items():
        schema = known_keys(section)
        assert not [name for name in names if schema.count(name) > 1], section
    for new in [*RENAMED.values(), *NEGATED.values()]:
        assert new[-1] in known_keys(new[:-1])
    for path in (path for group in RIVALS for path in group):
        # What is in a mapping of the model's is the model's business.
        section = path[: len(MODEL)] if path[: len(MODEL)] == MODEL else path[:-1]
        assert path[len(section)] in known_keys(section)
    groups = [{path[len(MODEL) :] for path in group} for group in SYNONYMS]
    for theirs, ours in MOE_CONFIG_ALIASES.items():
        assert any({("moe_config", theirs), (ours,)} <= group for group in groups), theirs


VALUES = {
    "hidden_act": ("relu", "gated-gelu"),
    "topk_method": ("greedy", "noaux_tc"),
    "norm_topk_prob": (False, True),
    "bias": (False, True),
}
PAIRS = [
    (".".join(map(str, first[2:])), ".".join(map(str, second[2:])))
    for group in SYNONYMS
    for first, second in permutations(group, 2)
]


@pytest.mark.parametrize(("low", "high"), PAIRS)
def test_the_source_that_outranks_another_wins_in_any_spelling(low: str, high: str) -> None:
    names = {low.rpartition(".")[2], high.rpartition(".")[2]}
    one, other = next((values for name, values in VALUES.items() if name in names), (2, 4))
    one, other = ("float16", "float32") if "dtype" in names else (one, other)
    base = {"model": {"model_config": nested(low, one)}}
    config = load_config(base, overrides=[Override(f"model.model_config.{high}", other, f"--{high}")])
    assert {key: value for key, value in config.model.model_config.given().items() if value != {}} == nested(
        high, other
    )
    with pytest.raises(ConfigError, match="they are the same setting; keep one") as caught:
        load_config({"model": {"model_config": nested(low, one) | nested(high, other)}})
    assert all(name in str(caught.value) for name in (low, high))
    with pytest.raises(ConfigError, match="^--.*they are the same setting; keep one"):
        load_config(
            {},
            overrides=[
                Override(f"model.model_config.{key}", value, f"--{key}") for key, value in ((low, one), (high, other))
            ],
        )


def nested(path: str, value: object) -> dict:
    for name in reversed(path.split(".")):
        value = {name: value}
    return value


def test_the_last_of_two_equal_flags_counts() -> None:
    overrides = [Override("model.model_config.d_model", value, "--d_model") for value in (32, 64)]
    assert load_config({}, overrides=overrides).model.model_config.d_model == 64


LLAMA = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 16}
LLAMA |= {"num_attention_heads": 4, "vocab_size": 100, "max_position_embeddings": 64}
T5 = {"model_type": "t5", "d_model": 64, "d_ff": 96, "d_kv": 16, "num_layers": 2, "num_heads": 4, "vocab_size": 100}


@pytest.mark.parametrize(
    ("key", "field"),
    [
        ("d_model", "hidden_size"),
        ("hidden_size", "hidden_size"),
        ("d_ff", "intermediate_size"),
        ("d_kv", "head_dim"),
        ("num_layers", "num_layers"),
        ("num_attention_heads", "num_heads"),
    ],
)
def test_any_spelling_outranks_a_models_own_file(key: str, field: str) -> None:
    for own in (LLAMA, T5):
        assert getattr(model_config_from(lay_over(own, {key: 8}), "f"), field) == 8
