"""What a person reads when a config is wrong: one line with the place, the mistake and what is accepted."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.config import Override, load_config, parse_override
from inference.config.run_modes import RUN_MODES
from inference.errors import EXIT_USAGE, ConfigError


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def message(text: str | bytes, *overrides: Override) -> str:
    Path("x.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ConfigError) as caught:
        load_config("x.yaml", overrides=overrides)
    assert caught.value.exit_code == EXIT_USAGE
    assert "\n" not in str(caught.value)
    return str(caught.value)


MODEL = "model:\n  model_config:\n"
UNKNOWN_KEYS = [
    (
        f"{MODEL}    num_layrs: 2\n",
        "x.yaml:3: unknown key 'num_layrs' in model.model_config; did you mean 'num_layers'?",
    ),
    (
        "seed: 1\npredict_btach_size: 2\n",
        "x.yaml:2: unknown key 'predict_btach_size'; did you mean 'predict_batch_size'?",
    ),
    (
        "generation_config:\n  max_lenght: 2\n",
        "x.yaml:2: unknown key 'max_lenght' in generation_config; did you mean 'max_length'?",
    ),
    ("top_k: 3\n", "x.yaml:1: unknown key 'top_k'; did you mean 'generation_config.top_k'?"),
    ("num_layers: 3\n", "x.yaml:1: unknown key 'num_layers'; did you mean 'model.model_config.num_layers'?"),
    ("contxt: {mode: 0}\n", "x.yaml:1: unknown key 'contxt'; did you mean 'context'?"),
    ("optimiser: {}\n", "x.yaml:1: unknown key 'optimiser'; did you mean 'optimizer'?"),
    ("model:\n  model_cfg: {}\n", "x.yaml:2: unknown key 'model_cfg' in model; did you mean 'model_config'?"),
    (
        "processor: {tokenizer: {vocab_fil: a}}\n",
        "x.yaml:1: unknown key 'vocab_fil' in processor.tokenizer; did you mean 'vocab_file'?",
    ),
    ("zzzzzz: 1\n", "x.yaml:1: unknown key 'zzzzzz'"),
    ("1: 2\n", "x.yaml:1: unknown key '1'"),
]


@pytest.mark.parametrize(("text", "expected"), UNKNOWN_KEYS, ids=[text.split(":")[0] for text, _ in UNKNOWN_KEYS])
def test_unknown_key(text: str, expected: str) -> None:
    assert message(text) == expected


WRONG_VALUES = [
    (
        f"{MODEL}    num_layers: two\n",
        "x.yaml:3: model.model_config.num_layers must be an integer, got 'two'",
    ),
    (
        f"{MODEL}    num_layers: True\n",
        "x.yaml:3: model.model_config.num_layers must be an integer, got true",
    ),
    (f"{MODEL}    num_layers: 2.0\n", "x.yaml:3: model.model_config.num_layers must be an integer, got 2.0"),
    (f"{MODEL}    num_layers: 0\n", "x.yaml:3: model.model_config.num_layers must be at least 1, got 0"),
    (f"{MODEL}    theta: -1\n", "x.yaml:3: model.model_config.theta must be at least 2, got -1"),
    (f"{MODEL}    theta: .inf\n", "x.yaml:3: model.model_config.theta must be a finite number, got inf"),
    (
        f"{MODEL}    compute_dtype: fp8\n",
        "x.yaml:3: model.model_config.compute_dtype must be 'float32', 'float16', 'bfloat16' or 'int8', got 'fp8'",
    ),
    (
        f"{MODEL}    attn_proj_has_bias: True\n",
        "x.yaml:3: model.model_config.attn_proj_has_bias is not supported yet except as false, got true",
    ),
    (
        f"{MODEL}    scaling_factor: x\n",
        "x.yaml:3: model.model_config.scaling_factor must be a number above 0, "
        "or a mapping for extend_method LLAMA3, got 'x'",
    ),
    ("seed: '1'\n", "x.yaml:1: seed must be an integer, got '1'"),
    ("seed: -1\n", "x.yaml:1: seed must be at least 0, got -1"),
    ("use_parallel: 'Flase'\n", "x.yaml:1: use_parallel must be true or false, got 'Flase'"),
    ("use_parallel: 1\n", "x.yaml:1: use_parallel must be true or false, got 1"),
    ("output_dir: 7\n", "x.yaml:1: output_dir must be text (put it in quotes), got 7"),
    (
        "run_mode: train\n",
        f"x.yaml:1: run_mode must be one of {', '.join(RUN_MODES)}, got 'train'; "
        "this project runs models and does not train them",
    ),
    (
        "run_mode: eval\n",
        f"x.yaml:1: run_mode must be one of {', '.join(RUN_MODES)}, got 'eval'; MindFormers' eval is evaluate here",
    ),
    ("context: 3\n", "x.yaml:1: context must be a section, a mapping of keys, got 3"),
    ("model: []\n", "x.yaml:1: model must be a section, a mapping of keys, got []"),
    ("serve: x\n", "x.yaml:1: serve must be a section, a mapping of keys, got 'x'"),
    (
        "context: {mode: true}\n",
        "x.yaml:1: context.mode must be 0 (GRAPH_MODE) or 1 (PYNATIVE_MODE), got true",
    ),
    (
        "context:\n  device_target: tpu\n",
        "x.yaml:2: context.device_target must be 'CPU', 'Ascend' or 'GPU', got 'tpu'",
    ),
    (
        "parallel: {parallel_mode: 9}\n",
        "x.yaml:1: parallel.parallel_mode must be 0 to 3, or one of DATA_PARALLEL, "
        "SEMI_AUTO_PARALLEL, AUTO_PARALLEL, HYBRID_PARALLEL, STAND_ALONE, MANUAL_PARALLEL, got 9",
    ),
    (
        "engine: {kv_cache_memory: lots}\n",
        "x.yaml:1: engine.kv_cache_memory must be a number of bytes, or a size such as 512MiB or 2GiB, got 'lots'",
    ),
    (
        "generation_config: {num_beams: 4}\n",
        "x.yaml:1: generation_config.num_beams is not supported yet except as 1, got 4",
    ),
    (
        "generation_config: {eos_token_id: [1, x]}\n",
        "x.yaml:1: generation_config.eos_token_id must be a token id "
        "or a list of token ids (integers from 0 to 2^31 - 1), got [1, 'x']",
    ),
    (
        f"output_dir: ['{'x' * 99}']\n",
        f"x.yaml:1: output_dir must be text (put it in quotes), got ['{'x' * 58}...",
    ),
]


@pytest.mark.parametrize(("text", "expected"), WRONG_VALUES, ids=[text.strip()[-30:] for text, _ in WRONG_VALUES])
def test_wrong_value(text: str, expected: str) -> None:
    assert message(text) == expected


def test_all_mistakes_in_one_line_in_the_order_of_the_file() -> None:
    text = f"{MODEL}    num_layrs: 3\n    num_heads: two\nseed: -1\nuse_parallel: 3\n"
    assert message(text) == (
        "x.yaml:3: unknown key 'num_layrs' in model.model_config; did you mean 'num_layers'?; and 3 more: "
        "x.yaml:4: model.model_config.num_heads must be an integer, got 'two'; "
        "x.yaml:5: seed must be at least 0, got -1; x.yaml:6: use_parallel must be true or false, got 3"
    )


def test_a_long_list_of_mistakes_is_cut() -> None:
    assert message("".join(f"zzz{number}: 1\n" for number in range(20))).endswith("x.yaml:6: unknown key 'zzz5'; ...")


FILES = [
    (b"", "x.yaml is empty"),
    (b"# only a comment\n", "x.yaml is empty"),
    (b"---\n", "x.yaml is empty"),
    (b"- a\n- b\n", "x.yaml holds a list; a config is a mapping of keys"),
    (b"hello\n", "x.yaml holds only the text 'hello'; a config is a mapping of keys"),
    (b"\xff\xfea\x00", "x.yaml is not UTF-8 text (byte 0)"),
    ("seed: 1 # naïve\n".encode("latin-1"), "x.yaml is not UTF-8 text (byte 12)"),
    (b"\x00\x01", "x.yaml: not valid YAML: "),
    (b"seed: [1, 2\n", "x.yaml:2: not valid YAML: "),
    (b"seed: 1\n\tcontext: 2\n", "x.yaml:2: not valid YAML: "),
    (b"seed: *none\n", "x.yaml:1: not valid YAML: found undefined alias"),
    (b"seed: 1\n---\nseed: 2\n", "x.yaml:3: a second document begins here"),
    (b"seed: 1\ncontext: {mode: 0}\nseed: 2\n", "x.yaml:3: the key 'seed' is already set on line 1"),
    (b"context:\n  mode: 0\n  mode: 1\n", "x.yaml:3: the key 'mode' is already set on line 2"),
    (b"? [a]\n: 1\n", "x.yaml:1: a key must be text, not a list"),
    (b"{{ name }}: 1\n", "x.yaml:1: a key must be text, not a mapping"),
    (b"seed: &a [*a]\n", "x.yaml:1: an anchor contains itself"),
    (b"pipeline: &a {<<: *a}\n", "x.yaml:1: an anchor contains itself"),
    (b"pipeline: {<<: 3}\n", "x.yaml:1: '<<' merges mappings only"),
    (b"[" * 5000, "x.yaml:1: nested more than 100 deep"),
    (b"- " * 5000, "x.yaml:1: nested more than 100 deep"),
    (b"? " * 5000, "x.yaml:1: nested more than 100 deep"),
    (b"seed: !!int x\n", "x.yaml:1: 'x' is not of the type that its tag says"),
    (b"seed: !secret 1\n", "x.yaml:1: the tag !secret is not accepted"),
    (b"seed: !!binary aGk=\n", "x.yaml:1: the tag !!binary is not accepted"),
    (b"!!set {a, b}\n", "x.yaml:1: the tag !!set is not accepted"),
    (b"x" * (8 * 1024 * 1024 + 1), "x.yaml is larger than 8388608 bytes"),
    (b"base_config: 3\n", "x.yaml:1: base_config must be the path of a file, or a list of them, got 3"),
    (
        b"model: {model_config: {num_layers: 2, num_hidden_layers: 3}}\n",
        "x.yaml:1: model.model_config.num_hidden_layers is 3 and num_layers is 2; they are the same setting",
    ),
]


@pytest.mark.parametrize(("content", "expected"), FILES, ids=[str(content[:24]) for content, _ in FILES])
def test_a_file_that_is_not_a_config(content: bytes, expected: str) -> None:
    assert message(content).startswith(expected)


@pytest.mark.parametrize(
    "attack",
    [
        "!!python/object/apply:os.mkdir ['made']",
        "!!python/object/new:os.mkdir ['made']",
        "!!python/name:os.system",
        "!!python/module:os",
        "[1, !!python/object/apply:pathlib.Path.touch [made]]",
        "{!!python/name:os.system : 1}",
    ],
)
def test_tags_create_no_objects(attack: str) -> None:
    assert "is not accepted; write plain values; no objects are made" in message(f"pipeline: {attack}\n")
    assert not Path("made").exists()


def test_aliases_of_aliases_are_stopped() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    assert "aliases repeat more than 200000 values" in message("\n".join(lines))


def test_merges_of_merges_are_stopped() -> None:
    lines = ["a0: &a0 {k: 1}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 9)]
    assert "aliases repeat more than 200000 values" in message("\n".join(lines))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("predict_lama.yaml", "predict_lama.yaml does not exist; did you mean 'predict_llama.yaml'?"),
        ("sub/predict_lama.yaml", "sub/predict_lama.yaml does not exist; there is no directory sub"),
        ("qqqqqqqqqqqq", "qqqqqqqqqqqq does not exist; give the path of a YAML file"),
        (".", ". is a directory, not a YAML file; give a file in it, such as predict_llama.yaml"),
        ("", ". is a directory, not a YAML file; give a file in it, such as predict_llama.yaml"),
        (
            "empty",
            "empty is a directory, not a YAML file; it has no config.json either, so it is not a model; give a .yaml "
            "file or a model's directory",
        ),
        ("predict_llama.yaml/x", "predict_llama.yaml/x cannot be read: Not a directory"),
        ("a\0b", "a\0b cannot be read: embedded null byte"),
    ],
)
def test_a_path_that_is_not_a_file(path: str, expected: str) -> None:
    Path("predict_llama.yaml").write_text("seed: 1\n")
    Path("empty").mkdir()
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            parse_override("generation_config.tpo_k=1"),
            "--options: unknown key 'tpo_k' in generation_config; did you mean 'top_k'?",
        ),
        (parse_override("num_layrs=1", "--num_layrs"), "--num_layrs: unknown key 'num_layrs'"),
        (
            parse_override("top_k=1"),
            "--options: unknown key 'top_k'; did you mean 'generation_config.top_k'?",
        ),
        (
            Override("generation_config.top_k", "two", "--top_k"),
            "--top_k: generation_config.top_k must be an integer, got 'two'",
        ),
        (parse_override("use_parallel=maybe"), "--options: use_parallel must be true or false, got 'maybe'"),
        (parse_override("seed.x=1"), "--options: seed must be an integer, got a mapping"),
        (Override("a..b", 1, "--options"), "--options: 'a..b' is not a key; write it as section.key"),
        (
            Override(".".join("a" * 50), 1, "--x"),
            f"--x: '{'.'.join('a' * 50)}' is not a key; write it as section.key",
        ),
    ],
)
def test_override_that_is_wrong(override: Override, expected: str) -> None:
    assert message("output_dir: a\n", override) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            {"model": {"model_config": {"num_layrs": 1}}},
            "mapping: unknown key 'num_layrs' in model.model_config; did you mean 'num_layers'?",
        ),
        ({"model": {3: 4}}, "mapping: the key 3 in model must be text"),
        ({"seed": "x"}, "mapping: seed must be an integer, got 'x'"),
    ],
)
def test_mapping_that_is_wrong(source: dict, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(source)
    assert str(caught.value) == expected


@given(st.binary(max_size=60) | st.text("abseed:{}[]&*!<-? \n\t'\"|>%@`#0.", max_size=60).map(str.encode))
def test_every_file_gives_a_config_or_a_one_line_error(content: bytes) -> None:
    Path("any.yaml").write_bytes(content)
    try:
        load_config("any.yaml")
    except ConfigError as error:
        assert "\n" not in str(error)
        assert str(error).startswith("any.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"key{number}: 1\n" for number in range(190_000)),
        "generation_config:\n" + "".join(f"  key{number}: 1\n" for number in range(190_000)),
        "adapters: {" + ", ".join(f'"a{number}": b' for number in range(190_000)) + "}\n",
    ],
    ids=["root", "section", "braces"],
)
def test_too_many_keys_are_rejected_at_once(text: str) -> None:
    Path("many.yaml").write_text(text)
    began = time.process_time()
    with pytest.raises(ConfigError) as caught:
        load_config("many.yaml")
    # Processor time, so that a busy machine does not matter; parsing them takes five times as long.
    assert time.process_time() - began < 2
    assert str(caught.value) == "many.yaml has more than 20,000 keys; a config is a short YAML file"


def test_many_mistakes_are_counted_and_the_first_shown() -> None:
    Path("many.yaml").write_text("".join(f"key{number}: 1\n" for number in range(19_000)))
    began = time.process_time()
    with pytest.raises(ConfigError, match="; and 18,999 more: "):
        load_config("many.yaml")
    assert time.process_time() - began < 2
