"""Settings of generation: their ranges, and which source outranks which."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.config import (
    GenerationConfig,
    ignored_settings,
    load_config,
    merge_generation_config,
    read_generation_file,
    settings_from_model,
)
from inference.config.generation import with_sampling
from inference.config.overrides import Override
from inference.errors import ConfigError


def test_defaults() -> None:
    config = GenerationConfig()
    assert config.greedy
    assert config.given() == {}
    assert (config.max_length, config.max_new_tokens, config.seed, config.logprobs) == (
        None,
        None,
        None,
        None,
    )
    assert (config.temperature, config.top_k, config.top_p, config.use_past) == (1.0, 50, 1.0, True)
    assert (config.eos_token_id, config.stop) == ((), ())


@pytest.mark.parametrize(
    ("settings", "name", "value"),
    [
        ({"temperature": 0}, "temperature", 0.0),
        ({"top_p": 1}, "top_p", 1.0),
        ({"top_k": 0}, "top_k", 0),
        ({"top_k": -1}, "top_k", 0),
        ({"repetition_penalty": 1}, "repetition_penalty", 1.0),
        ({"frequency_penalty": -2}, "frequency_penalty", -2.0),
        ({"seed": 0}, "seed", 0),
        ({"seed": 2**70}, "seed", 2**70),
        ({"eos_token_id": 2}, "eos_token_id", (2,)),
        ({"eos_token_id": [2, 7]}, "eos_token_id", (2, 7)),
        ({"eos_token_id": []}, "eos_token_id", ()),
        ({"pad_token_id": -1}, "pad_token_id", None),
        ({"stop": "x"}, "stop", ("x",)),
        ({"stop": ["x", "y"]}, "stop", ("x", "y")),
        ({"logprobs": 0}, "logprobs", 0),
        ({"max_decode_length": 9}, "max_length", 9),
        ({"max_decode_length": 9, "max_length": 7}, "max_length", 7),
        ({"num_beams": 1}, "num_beams", 1),
        ({"output_scores": False}, "output_scores", False),
        ({"top_k": None}, "top_k", 50),
    ],
)
def test_accepted(settings: dict, name: str, value: object) -> None:
    assert getattr(GenerationConfig().updated(**settings), name) == value


REFUSED = [
    ({"max_lenght": 3}, "unknown generation setting 'max_lenght'; did you mean 'max_length'?"),
    ({"zzz": 3}, "unknown generation setting 'zzz'"),
    ({"temperature": -0.1}, "temperature must be at least 0, got -0.1"),
    ({"temperature": float("nan")}, "temperature must be a finite number, got nan"),
    ({"temperature": "hot"}, "temperature must be a number, got 'hot'"),
    ({"top_p": 0}, "top_p must be greater than 0, got 0"),
    ({"top_p": 1.1}, "top_p must be at most 1, got 1.1"),
    ({"min_p": 2}, "min_p must be at most 1, got 2"),
    ({"top_k": -2}, "top_k must be at least -1, got -2"),
    ({"top_k": 2.0}, "top_k must be an integer, got 2.0"),
    ({"top_k": True}, "top_k must be an integer, got true"),
    ({"repetition_penalty": 0}, "repetition_penalty must be greater than 0, got 0"),
    ({"presence_penalty": 2.5}, "presence_penalty must be at most 2, got 2.5"),
    ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
    ({"max_length": "9"}, "max_length must be an integer, got '9'"),
    ({"min_length": -1}, "min_length must be at least 0, got -1"),
    ({"do_sample": 1}, "do_sample must be true or false, got 1"),
    ({"seed": -1}, "seed must be at least 0, got -1"),
    ({"seed": 1.5}, "seed must be an integer, got 1.5"),
    ({"logprobs": 21}, "logprobs must be at most 20, got 21"),
    ({"stop": [""]}, "stop must be text or a list of texts, none of them empty, got ['']"),
    ({"stop": 3}, "stop must be text or a list of texts, none of them empty, got 3"),
    (
        {"eos_token_id": "x"},
        "eos_token_id must be a token id or a list of token ids (integers from 0 to 2^31 - 1), got 'x'",
    ),
    (
        {"eos_token_id": [True]},
        "eos_token_id must be a token id or a list of token ids (integers from 0 to 2^31 - 1), got [True]",
    ),
    ({"pad_token_id": -2}, "pad_token_id must be a token id (an integer from 0 to 2^31 - 1), got -2"),
    ({"num_beams": 4}, "num_beams is not supported yet except as 1, got 4"),
    ({"num_beams": True}, "num_beams is not supported yet except as 1, got true"),
    ({"output_logits": True}, "output_logits is not supported yet except as false, got true"),
    (
        {"min_new_tokens": 9, "max_new_tokens": 5},
        "min_new_tokens 9 is greater than max_new_tokens 5; lower one or raise the other",
    ),
]


@pytest.mark.parametrize(("settings", "expected"), REFUSED, ids=[str(settings) for settings, _ in REFUSED])
def test_rejected(settings: dict, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        GenerationConfig().updated(**settings)
    assert str(caught.value) == expected


def test_the_constructor_also_rejects() -> None:
    with pytest.raises(ConfigError, match="did you mean 'max_length'"):
        GenerationConfig(max_lenght=3)


def test_updated_does_not_change_the_original() -> None:
    first = GenerationConfig(top_k=3, max_length=9)
    second = first.updated(max_new_tokens=4, seed=None)
    assert first.given() == {"top_k": 3, "max_length": 9}
    assert second.given() == {"top_k": 3, "max_new_tokens": 4}


@pytest.mark.parametrize(
    ("settings", "greedy"),
    [({}, True), ({"do_sample": True}, False), ({"do_sample": True, "temperature": 0}, True)],
)
def test_greedy(settings: dict, greedy: bool) -> None:
    assert GenerationConfig(**settings).greedy is greedy


@pytest.mark.parametrize(
    ("settings", "prompt", "limit"),
    [
        ({}, 10, 90),
        ({"max_new_tokens": 5}, 10, 5),
        ({"max_new_tokens": 500}, 10, 90),
        ({"max_length": 30}, 10, 20),
        ({"max_length": 10}, 10, 0),
        ({"max_length": 5}, 10, 0),
        ({"max_length": 500}, 10, 90),
        ({}, 100, 0),
        ({}, 101, 0),
    ],
)
def test_new_token_limit(settings: dict, prompt: int, limit: int) -> None:
    assert GenerationConfig(**settings).new_token_limit(prompt, 100) == limit


@pytest.mark.parametrize(
    ("settings", "minimum"),
    [({}, 0), ({"min_length": 15}, 5), ({"min_length": 9}, 0), ({"min_length": 15, "min_new_tokens": 1}, 1)],
)
def test_new_token_minimum(settings: dict, minimum: int) -> None:
    assert GenerationConfig(**settings).new_token_minimum(10) == minimum


LENGTHS = st.fixed_dictionaries(
    {},
    optional={
        "max_length": st.integers(1, 9),
        "max_new_tokens": st.integers(1, 9),
        "top_k": st.integers(0, 9),
    },
)


@given(st.lists(LENGTHS, max_size=5))
def test_merge_order(layers: list[dict]) -> None:
    merged = merge_generation_config(*layers)
    expected: dict[str, int] = {}
    for layer in layers:
        if "top_k" in layer:
            expected["top_k"] = layer["top_k"]
        lengths = [name for name in ("max_new_tokens", "max_length") if name in layer]
        if lengths:
            expected.pop("max_length", None)
            expected.pop("max_new_tokens", None)
            expected[lengths[0]] = layer[lengths[0]]
    assert merged.given() == expected


@given(st.lists(LENGTHS, max_size=4), LENGTHS)
def test_merging_at_once_is_merging_step_by_step(layers: list[dict], last: dict) -> None:
    assert merge_generation_config(*layers, with_sampling(last)) == merge_generation_config(*layers).updated(**last)


def test_every_source_outranks_the_one_before_it() -> None:
    names = ("top_k", "top_p", "temperature", "min_length")
    model = settings_from_model(dict(zip(names, (1, 0.1, 0.1, 1), strict=True)), "generation_config.json")
    yaml = {
        "model": {"model_config": dict(zip(names[1:], (0.2, 0.2, 2), strict=True))},
        "generation_config": dict(zip(names[2:], (0.3, 3), strict=True)),
    }
    merged = load_config(yaml).generation(model, {"min_length": 4})
    assert [getattr(merged, name) for name in names] == [1, 0.2, 0.3, 4]


def test_seed_of_the_config_seeds_generation() -> None:
    assert load_config({"seed": 0}).generation().seed == 0
    assert load_config({"seed": 0, "generation_config": {"seed": 3}}).generation().seed == 3
    assert load_config({"seed": 0}).generation(request={"seed": 4}).seed == 4
    assert load_config({}).generation().seed is None


def test_both_lengths_of_one_source() -> None:
    merged = merge_generation_config({"max_length": 9, "max_new_tokens": 3})
    assert (merged.max_length, merged.max_new_tokens) == (None, 3)


def test_file_of_a_model(tmp_path: Path) -> None:
    path = tmp_path / "generation_config.json"
    settings = {
        "_from_model_config": True,
        "bos_token_id": 1,
        "cache_implementation": "hybrid",
        "do_sample": True,
        "eos_token_id": [2, 7],
        "length_penalty": 1.3,
        "num_beams": 4,
        "something_of_next_year": {"a": 1},
        "pad_token_id": None,
        "temperature": 0.6,
        "transformers_version": "5.0",
    }
    path.write_text(json.dumps(settings))
    given = read_generation_file(path).given()
    assert given == {"bos_token_id": 1, "do_sample": True, "eos_token_id": (2, 7), "temperature": 0.6}


def test_a_missing_file(tmp_path: Path) -> None:
    assert read_generation_file(tmp_path / "generation_config.json").given() == {}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"{", "is not valid JSON"),
        (b"\xff", "is not valid JSON"),
        (b"[1]", "must hold a mapping"),
        (b'{"top_k": "x"}', "top_k must be an integer, got 'x'"),
        (b'{"top_p": 3}', "top_p must be at most 1, got 3"),
        (b"[" * 100_000, "is not valid JSON"),
    ],
)
def test_an_invalid_file(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "generation_config.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_generation_file(path)
    assert str(caught.value).startswith(str(path))
    assert expected in str(caught.value)


def test_keys_of_hugging_face_without_effect_are_accepted_and_reported() -> None:
    settings = {"transformers_version": "5.0", "early_stopping": True, "top_k": 3}
    config = load_config({"generation_config": settings})
    assert config.generation().given() == {"top_k": 3}
    assert [key for key, _ in config.unused_keys] == [
        "generation_config.transformers_version",
        "generation_config.early_stopping",
    ]


@pytest.mark.parametrize(
    ("flags", "sampled"),
    [
        ({}, False),
        ({"temperature": 0.8}, True),
        ({"top_k": 3}, True),
        ({"temperature": 0}, False),
        ({"top_p": 0.9, "do_sample": False}, False),
    ],
)
def test_a_flag_of_sampling_turns_it_on_and_a_file_keeps_its_meaning(flags: dict, sampled: bool) -> None:
    """The file says do_sample False beside a temperature, as MindFormers' do."""
    file = {"generation_config": {"do_sample": False, "temperature": 0.7}}
    overrides = [Override(f"generation_config.{name}", value, f"--{name}") for name, value in flags.items()]
    config = load_config(file, overrides=overrides)
    assert config.generation().do_sample is sampled
    assert bool(config.sampling_flag) is sampled
    assert config.generation(request={"temperature": 0.5}).do_sample


@pytest.mark.parametrize(
    ("given", "name", "value"),
    [
        ({"n": 3}, "num_return_sequences", 3),
        ({"max_completion_tokens": 5}, "max_new_tokens", 5),
        ({"max_tokens": 5}, "max_new_tokens", 5),
        ({"stop_strings": ["a"]}, "stop", ("a",)),
        ({"logprobs": True, "top_logprobs": 4}, "logprobs", 4),
        ({"logprobs": True}, "logprobs", 0),
        ({"logprobs": False}, "logprobs", None),
        ({"logit_bias": {"42": -5, 7: 1}}, "logit_bias", {42: -5.0, 7: 1.0}),
        ({"logit_bias": ["42=-5"]}, "logit_bias", {42: -5.0}),
        ({"sequence_bias": [[[5, 17], -2]]}, "sequence_bias", (((5, 17), -2.0),)),
        ({"bad_words_ids": [[5], [1, 2]]}, "bad_words_ids", ((5,), (1, 2))),
        ({"exponential_decay_length_penalty": [5, 1.5]}, "exponential_decay_length_penalty", (5, 1.5)),
    ],
)
def test_settings_as_other_tools_write_them(given: dict, name: str, value: object) -> None:
    assert getattr(GenerationConfig().updated(**given), name) == value


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"logit_bias": {"a": 1}}, "token ids and numbers"),
        ({"logit_bias": {3: float("inf")}}, "token ids and numbers"),
        ({"sequence_bias": [[5, -2]]}, "lists of token ids, each with a number"),
        ({"bad_words_ids": [5]}, "a list of lists of token ids"),
        ({"exponential_decay_length_penalty": [5]}, "a number of tokens and a factor"),
    ],
)
def test_invalid_token_settings(given: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GenerationConfig().updated(**given)


def test_unsupported_settings_of_a_models_own_file_are_named(tmp_path: Path) -> None:
    path = tmp_path / "generation_config.json"
    own = {"num_beams": 4, "guidance_scale": 1.0, "no_repeat_ngram_size": 3, "_from_model_config": True, "x": 1}
    path.write_text(json.dumps(own))
    assert ignored_settings(path) == ["num_beams 4", "x 1"]
    assert read_generation_file(path).no_repeat_ngram_size == 3
    assert ignored_settings(tmp_path / "none.json") == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"eos_token_id": 2**63},
            "eos_token_id must be a token id or a list of token ids (integers from 0 to 2^31 - 1)",
        ),
        ({"bos_token_id": 2**31}, "bos_token_id must be a token id (an integer from 0 to 2^31 - 1), got 2147483648"),
        (
            {"bad_words_ids": [[2**40]]},
            "bad_words_ids must be a token id or a list of token ids (integers from",
        ),
        ({"max_new_tokens": 2**63}, "max_new_tokens must be at most 2147483647, got 9223372036854775808"),
        ({"repetition_penalty": 1e300}, "repetition_penalty must be at most 3.4e+38, got 1e+300"),
        ({"num_return_sequences": 10**12}, "num_return_sequences must be at most "),
    ],
)
def test_numbers_of_a_model_beyond_what_kernels_hold(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings_from_model(settings, "generation_config.json")
    assert message in str(caught.value)
