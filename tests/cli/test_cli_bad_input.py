"""Every mistake is one line on stderr and exit code 2, before MindSpore is imported; nothing is left behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from inference.config.presets import find_preset

DEMO = Path(__file__).parents[2] / "inference" / "demo"
PROMPT = ("--predict_data", "a")
TINY_LLAMA = """
model:
  arch: {type: LlamaForCausalLM}
  model_config: {type: LlamaConfig, vocab_size: 1280, hidden_size: 8, intermediate_size: 16, num_layers: 1,
    num_heads: 1, seq_length: 64}
"""


FLAGS = [
    (["--predict_btach_size", "3"], "there is no flag --predict_btach_size; did you mean '--predict_batch_size'?"),
    (["--max_lenght", "3"], "there is no flag --max_lenght; did you mean '--max_length'?"),
    (["--num_beams", "2"], "there is no flag --num_beams; did you mean '--generation_config.num_beams'?"),
    (["--num_layers", "2"], "there is no flag --num_layers; did you mean '--model.model_config.num_layers'?"),
    (["--qqqq"], "there is no flag --qqqq"),
    (["--seed"], "Option '--seed' requires an argument"),
    (["--seed", "-1"], "--seed: seed must be at least 0, got -1"),
    (["--seed", "one"], "--seed: seed must be an integer, got 'one'"),
    (["--top_p", "2"], "--top_p: generation_config.top_p must be at most 1, got 2"),
    (["--temperature", "-0.5"], "--temperature: generation_config.temperature must be at least 0, got -0.5"),
    (["--max_new_tokens", "0"], "--max_new_tokens: generation_config.max_new_tokens must be at least 1, got 0"),
    (["--predict_batch_size", "0"], "--predict_batch_size: predict_batch_size must be at least 1, got 0"),
    (["--do_sample", "perhaps"], "--do_sample: generation_config.do_sample must be true or false, got 'perhaps'"),
    (["--mode", "2"], "--mode: context.mode must be 0 (GRAPH_MODE) or 1 (PYNATIVE_MODE), got 2"),
    (["--logprobs", "21"], "--logprobs: generation_config.logprobs must be at most 20, got 21"),
    (["--output_format", "xml"], "--output_format: output.format must be 'text', 'json' or 'mindformers', got 'xml'"),
    (["--truncate", "up"], "--truncate: engine.truncate must be 'left' or 'right', got 'up'"),
    (["--run_mode", "finetune"], "this project runs models and does not train them"),
    (
        ["--adapter_id", "x"],
        "--adapter_id: adapter_id 'x' is not an adapter of this run; name it and its directory",
    ),
    (["--options", "top_k=1"], "--options: unknown key 'top_k'; did you mean 'generation_config.top_k'?"),
    (["--options", "engine.kernel=stock"], "unknown key 'kernel' in engine; did you mean 'kernels'?"),
    (["--options", "generation_config.max_lenght=1"], "'max_lenght' in generation_config; did you mean 'max_length'?"),
    (["--options", "temperature"], "--options: 'temperature' is not of the form key=value"),
    (["--options"], "--options needs a value"),
    (["--stop", "--seed", "1"], "--stop needs a value"),
    (["--engine.threads"], "--engine.threads needs a value"),
    (["--engine.threads", "two"], "--engine.threads: engine.threads must be an integer, got 'two'"),
    (["--engin.threads", "2"], "--engin.threads: unknown key 'engin'; did you mean 'engine'?"),
    (["--min_length", "3", "again"], "there is no flag --min_length; did you mean '--generation_config.min_length'?"),
    (["--seed", "1", "again"], "'again' belongs to no flag; a prompt goes after --predict_data"),
    (["--seed", "1", "chat"], "'chat' belongs to no flag; give --run_mode chat"),
    (["--seed", "1", "help"], "'help' belongs to no flag; --help shows the flags"),
    (["--seed", "1", "llama2_7b"], "'llama2_7b' belongs to no flag; give --model llama2_7b; a prompt goes after"),
    (["--port", "8000"], "there is no flag --port; did you mean '--serve.port'?"),
    (["-p", "hi"], "there is no flag -p; did you mean '--predict_data'?"),
    (["--load-in-4bit", "True"], "there is no flag --load-in-4bit; did you mean '--weight_dtype'?"),
    (["--generation-config.top-kk", "3"], "unknown key 'top-kk' in generation_config; did you mean 'top_k'?"),
    (["--save_file", f"{'x' * 300}.jsonl"], f"{'x' * 80}...: file name too long; give a shorter one"),
    (["--metrics_file", f"{'x' * 300}.json", "--check"], f"{'x' * 80}...: file name too long; give a shorter one"),
    (["--seed", "99999999999999999999999", "--threads", "5000"], "engine.threads must be at most 1024, got 5000"),
    (["--max_new_tokens", "0"], "generation_config.max_new_tokens must be at least 1, got 0"),
    (["--top_p", "2"], "generation_config.top_p must be at most 1, got 2"),
    (["--temperature", "-1"], "generation_config.temperature must be at least 0, got -1"),
    (["--options", "engine.threads=0"], "engine.threads must be at least 1, got 0"),
    (["--show_completion", "tcsh"], "'tcsh' is not one of 'bash', 'zsh', 'fish'"),
]


@pytest.mark.parametrize(("arguments", "message"), FLAGS, ids=lambda value: " ".join(value) if value else "")
def test_flags(cli, arguments, message):
    assert message in cli.demo(*PROMPT, *arguments).error()


DEVICES = [
    (["--device_target", "ascendd"], "context.device_target must be 'CPU', 'Ascend' or 'GPU', got 'ascendd'"),
    (["--device_target", "GPU"], "MindSpore 2.9 has no GPU backend; give --device_target CPU or Ascend"),
    (["--device_id", "1"], "--device_id: there is no CPU device 1; a machine's CPU is device 0"),
    (["--device_target", "Ascend", "--device_id", "999"], "Ascend device 999 is not there, this machine has "),
]


@pytest.mark.parametrize(("arguments", "message"), DEVICES)
def test_missing_devices(cli, arguments, message):
    assert message in cli.demo(*PROMPT, *arguments).error()


@pytest.mark.skipif(any(Path("/dev").glob("davinci[0-9]*")), reason="this machine has an Ascend device")
def test_ascend_on_a_machine_without_it(cli):
    message = cli.demo(*PROMPT, "--device_target", "Ascend").error()
    assert message.startswith("--device_target: Ascend device 0 is not there, this machine has no Ascend device")
    assert message.endswith("give --device_target CPU")


def test_no_config(cli):
    assert cli(*PROMPT).error().startswith("--config is missing; ")
    assert "--help shows an example" in cli().error()
    assert cli("--list_model").error() == "there is no flag --list_model; did you mean '--list_models'?"
    assert cli("some text").error() == "'some text' belongs to no flag; a prompt goes after --predict_data"


CONFIGS = [
    ("missing.yml", None, "missing.yml does not exist; did you mean 'missin.yaml'?"),
    ("no/where.yaml", None, "no/where.yaml does not exist; there is no directory no"),
    ("demmo", None, "there is no preset 'demmo'; did you mean 'demo'?"),
    (
        "configs/demo/predict_demo.yaml",
        None,
        "predict_demo.yaml does not exist; did you mean the preset, '--config demo'?",
    ),
    ("llama2-7b.yaml", None, "llama2-7b.yaml does not exist; did you mean the preset, '--config llama2-7b'?"),
    ("qwen3.guf", None, "qwen3.guf does not exist; did you mean 'qwen3.gguf'?"),
    ("llama2_8b", None, "there is no preset 'llama2_8b'; did you mean 'llama2_7b'?"),
    (".", None, ". is a directory, not a YAML file"),
    ("list.yaml", b"- a\n- b\n", "list.yaml holds a list; a config is a mapping of keys"),
    ("text.yaml", b"just words\n", "text.yaml holds only the text 'just words'"),
    ("broken.yaml", b"a: 1\nb: [1\n", "broken.yaml:3: not valid YAML: "),
    ("latin.yaml", b"a: caf\xe9\n", "latin.yaml is not UTF-8 text (byte 6)"),
    ("empty.yaml", b"", "empty.yaml is empty"),
    (
        "code.yaml",
        b"seed: !!python/object/apply:os.getpid []\n",
        "code.yaml:1: the tag !!python/object/apply:os.getpid",
    ),
    ("twice.yaml", b"seed: 1\nseed: 2\n", "twice.yaml:2: the key 'seed' is already set on line 1"),
    (
        "key.yaml",
        b"seed: 1\n\npredict_btach_size: 2\n",
        "key.yaml:3: unknown key 'predict_btach_size'; did you mean 'pre",
    ),
    (
        "nested.yaml",
        b"model:\n  model_config:\n    num_layrs: 2\n",
        "nested.yaml:3: unknown key 'num_layrs' in model.mod",
    ),
    (
        "type.yaml",
        b"generation_config:\n  top_k: many\n",
        "type.yaml:2: generation_config.top_k must be an integer, got ",
    ),
    ("base.yaml", b"base_config: gone.yaml\n", "base.yaml:1: base_config: there is no file gone.yaml"),
    ("binary.yaml", bytes(range(256)), "binary.yaml"),
]


@pytest.mark.parametrize(("name", "content", "message"), CONFIGS, ids=[name for name, _, _ in CONFIGS])
def test_configs(cli, name, content, message):
    cli.write("missin.yaml", "seed: 0\n")
    cli.write("qwen3.gguf", "")
    if content is not None:
        cli.write(name, content)
    assert message in cli("--config", name, *PROMPT).error()


def test_all_mistakes_of_a_config_are_listed_at_once(cli):
    cli.write("bad.yaml", "sed: 1\ngeneration_config:\n  top_p: 3\n")
    message = cli("--config", "bad.yaml", *PROMPT, "--seed", "x").error()
    assert all(part in message for part in ("bad.yaml:1: unknown key 'sed'", "bad.yaml:3: ", "--seed: ", "and 2 more"))


PROMPTS = [
    ([], b"", "there is no prompt; give --predict_data a text, a file (.txt, .jsonl, .csv, .parquet, "),
    ([""], b"", "--predict_data: the prompt is empty"),
    (["  \n"], b"", "--predict_data: the prompt is empty"),
    (["-"], b"", "there is no prompt"),
    (["-"], b"\n \n", "there is no prompt"),
    (["promts.txt"], b"", "the prompt file promts.txt does not exist; did you mean 'prompts.txt'?"),
    (
        ["zz.jsonl"],
        b"",
        "the prompt file zz.jsonl does not exist; a prompt that ends like a file name goes through",
    ),
    (["none/prompts.jsonl"], b"", "the prompt file none/prompts.jsonl does not exist"),
    (["blank.txt"], b"", "the prompt file blank.txt holds no prompt"),
    (["prompts.json"], b"", "prompts.json is a file, but none of .txt, .jsonl, .csv, .parquet, "),
    (["./folder/"], b"", "./folder/ is a directory"),
    ([f"{'long ' * 400}.txt"], b"", "does not exist"),
    (
        ["once upon " * 400],
        b"",
        "at most 511 leave room for an answer (the model's context is 512); shorten it, or cut",
    ),
]


@pytest.mark.parametrize(("values", "stdin", "message"), PROMPTS)
def test_prompts(cli, values, stdin, message):
    cli.write("prompts.txt", "a\n")
    cli.write("prompts.json", "[]\n")
    cli.write("folder/x", "")
    cli.write("blank.txt", "\n  \n")
    assert message in cli.demo(*(["--predict_data", *values] if values else []), stdin=stdin).error()


ROWS = [
    ("nonsense", "not JSON"),
    ("[1, 2]", "a row must be an object, got list"),
    ("{}", "no prompt in this row; give either 'prompt' (text or token ids) or 'messages'"),
    ('{"promt": "a"}', "unknown generation setting 'promt'; did you mean 'prompt'?"),
    ('{"prompt": ""}', "the prompt is empty"),
    ('{"prompt": []}', "the prompt is empty; give at least one token"),
    ('{"prompt": [1, -1]}', "prompt must be text or a list of token ids"),
    ('{"prompt": [99999]}', "token id 99999 is outside the vocabulary of "),
    ('{"prompt": "\\ud83d"}', "the text holds half of a character (U+D83D) at position 0"),
    ('{"prompt": "a", "messages": []}', "both prompt and messages in this row"),
    ('{"messages": [{"content": "a"}]}', "messages must be a list of objects with 'role' and 'content'"),
    ('{"messages": [{"role": "robot", "content": "a"}]}', "a message's role is system, user or assistant"),
    ('{"prompt": "a", "custom_id": []}', "custom_id must be text or a number"),
    ('{"prompt": "a", "max_lenght": 3}', "unknown generation setting 'max_lenght'; did you mean 'max_length'?"),
    ('{"prompt": "a", "temperature": "hot"}', "temperature must be a number, got 'hot'"),
    ('{"prompt": "a", "num_beams": 4}', "num_beams is not supported yet except as 1, got 4"),
    (
        '{"prompt": "a", "max_length": 1}',
        "the prompt has 2 tokens, at most 0 leave room for an answer (max_length is 1)",
    ),
    ('{"prompt": "a", "custom_id": "first"}', "custom_id 'first' is that of an earlier row too"),
]


@pytest.mark.parametrize(("row", "message"), ROWS, ids=[row for row, _ in ROWS])
def test_rows_of_jsonl(cli, row, message):
    cli.write("rows.jsonl", '{"prompt": "a", "custom_id": "first"}\n\n' + row + "\n")
    error = cli.demo("--predict_data", "rows.jsonl", "--check").error()
    assert error.startswith("rows.jsonl:3: ")
    assert message in error


def test_all_bad_rows_are_reported_without_loading_the_model(cli):
    """As error records, with their lines; nothing is computed, so it takes no longer than a check."""
    cli.write("rows.jsonl", "".join(f"{row}\n" for row, _ in ROWS[:-1]))
    cli.write("latin.txt", b"caf\xe9\n")
    result = cli.demo(
        *("--predict_data", "rows.jsonl", "latin.txt", "--save_file", "out.jsonl"),
        writes=("out.jsonl", "out.jsonl.job"),
    )
    assert result.code == 3
    rows = [json.loads(line) for line in (cli.directory / "out.jsonl").read_text().splitlines()]
    for row, (line, message) in zip(rows, [*ROWS[:-1], ("", "byte 0xE9 is not UTF-8; save it as UTF-8")], strict=True):
        assert message in row["error"]["message"], line
        assert row["text"] is None and row["finish_reason"] == "error"
    assert [row["error"]["line"] for row in rows] == [*range(1, len(ROWS)), 1]
    assert [row["row"] for row in rows] == list(range(len(ROWS)))
    (said,) = result.err.splitlines()
    assert said.startswith(f"{len(ROWS)} of {len(ROWS)} rows failed, the first: rows.jsonl:1: not JSON")


def copy_of_demo(cli, **changes: object) -> None:
    """The demo model as ./model, with keys of tokenizer_config.json changed."""
    shutil.copytree(DEMO, cli.directory / "model")
    path = cli.directory / "model" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


MODEL = ("--pretrained_model_dir", "model")


def test_a_truncated_checkpoint(cli):
    copy_of_demo(cli)
    os.truncate(cli.directory / "model" / "model.safetensors", 100_000)
    message = cli.demo(*PROMPT, *MODEL).error()
    assert message.startswith("model/model.safetensors: truncated, tensor 'model.embed_tokens.weight' ends at byte ")


def test_a_header_that_states_more_data_than_there_is(cli):
    copy_of_demo(cli)
    cli.write("model/model.safetensors", (1 << 60).to_bytes(8, "little") + b"{}")
    assert cli.demo(*PROMPT, *MODEL).error().startswith("model/model.safetensors: ")


def test_a_damaged_ckpt(cli):
    cli.write("weights.ckpt", os.urandom(64))
    assert cli.demo(*PROMPT, "--load_checkpoint", "weights.ckpt").error().startswith("weights.ckpt: ")


def test_weights_that_do_not_fit_the_config(cli):
    message = cli.demo(*PROMPT, "--model.model_config.num_layers", "3").error()
    assert "does not fit the config: tensors 9 unexpected: model.layers.3.input_layernorm.weight, " in message
    message = cli.demo(
        *PROMPT, "--model.model_config.num_layers", "5", "--options", "model.model_config.vocab_size=2000"
    ).error()
    assert "9 missing: model.layers.4." in message
    assert "1 misshapen: model.embed_tokens.weight is [" in message


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.npz"])
def test_pickles_are_rejected(cli, name):
    copy_of_demo(cli)
    (cli.directory / "model" / "model.safetensors").unlink()
    cli.write(f"model/{name}", b"cos\nsystem\n(S'touch owned'\ntR.")
    expected = f"model/{name}: files of type {Path(name).suffix} can run code when they are loaded; give a .safetensors"
    assert cli.demo(*PROMPT, *MODEL).error().startswith(expected)
    assert cli.demo(*PROMPT, "--load_checkpoint", f"model/{name}").error().startswith(expected)


HOSTILE = [
    ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "a template may not read '__class__' of a str"),
    ("{{ messages.append.__globals__ }}", "the chat template failed"),
    ("{% for i in range(100000000) %}x{% endfor %}", "Range too big"),
    ("{% include '/etc/passwd' %}", "the chat template failed"),
    ("{% if %}", "the chat template"),
    (None, "this tokenizer has no chat template"),
]


@pytest.mark.parametrize(("template", "message"), HOSTILE)
def test_chat_templates_that_fail_or_want_more_than_text(cli, template, message):
    copy_of_demo(cli, chat_template=template)
    assert message in cli.demo(*PROMPT, *MODEL, "--chat").error()


def test_damaged_files_of_a_model(cli):
    copy_of_demo(cli)
    (cli.directory / "model" / "tokenizer.model").write_bytes(b"nothing of the kind")
    assert "model/tokenizer.model" in cli.demo(*PROMPT, *MODEL).error()
    cli.write("model/generation_config.json", "{")
    assert cli.demo(*PROMPT, *MODEL).error().startswith("model/generation_config.json is not valid JSON")
    cli.write("model/config.json", "[]")
    assert cli.demo(*PROMPT, *MODEL).error() == "model/config.json holds a list; it must hold a JSON object"


def test_a_missing_checkpoint_is_an_error_unless_random_weights_are_requested(cli):
    cli.write("tiny.yaml", f"{TINY_LLAMA}processor: {{tokenizer: {{vocab_file: {DEMO / 'tokenizer.model'}}}}}\n")
    message = cli("--config", "tiny.yaml", *PROMPT).error()
    assert message.startswith("no checkpoint is given; give --load_checkpoint ")
    assert message.endswith("--random_weights True")
    checked = cli("--config", "tiny.yaml", *PROMPT, "--random_weights", "--check").answered()
    assert "weights random; 1 prompt; ok" in checked.out


def test_errors_for_missing_models_list_the_searched_places(cli):
    message = cli("--config", str(find_preset("llama2_7b")), *PROMPT).error()
    assert "the model 'llama2_7b' was not found in checkpoint_download/llama2_7b ($INFERENCE_MODEL_HOME is" in message
    assert (
        "the Hugging Face repository meta-llama/Llama-2-7b-hf: not in its cache, and HF_HUB_OFFLINE is set" in message
    )
    assert "put its files into checkpoint_download/llama2_7b" in message
    assert cli.demo(*PROMPT, *MODEL).error().startswith("the model 'model' was not found in checkpoint_download/model")
    assert "gone.ckpt does not exist" in cli.demo(*PROMPT, "--load_checkpoint", "gone.ckpt").error()


def test_an_unknown_family(cli):
    copy_of_demo(cli)
    cli.write("model/config.json", '{"architectures": ["FalconForCausalLM"]}')
    message = cli.demo(*PROMPT, *MODEL).error()
    assert message.startswith("model/config.json: architecture 'FalconForCausalLM' is not supported; ")
    assert "LlamaForCausalLM" in message


SAVE_FILES = [
    ("there.txt", "the save file there.txt exists; give another name, or --overwrite"),
    ("none/answers.txt", "the directory of the save file, none, does not exist; make it first"),
    ("there.txt/answers.txt", "the directory of the save file, there.txt, does not exist"),
    (".", "the save file . is a directory; give the name of a file"),
]


@pytest.mark.parametrize(("name", "message"), SAVE_FILES)
def test_save_files_that_cannot_be_written(cli, name, message):
    kept = cli.write("there.txt", "precious\n")
    assert message in cli.demo(*PROMPT, "--save_file", name).error()
    assert kept.read_text() == "precious\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_save_file_without_permission(cli):
    folder = cli.write("locked/x", "").parent
    folder.chmod(0o555)
    assert "permission denied" in cli.demo(*PROMPT, "--save_file", "locked/answers.txt").error()


def test_traceback_only_on_request(cli):
    result = cli.demo("--predict_data", "gone.txt", "--traceback")
    assert result.code == 2
    assert result.err.startswith("Traceback (most recent call last)")
    assert result.err.splitlines()[-1].startswith("error: the prompt file gone.txt does not exist")


def test_a_closed_standard_input(cli):
    words = " ".join(f"'{word}'" for word in cli.words(("--config", "demo", "--predict_data", "-")))
    done = subprocess.run(["bash", "-c", f"{words} <&-"], cwd=cli.directory, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: standard input is closed; give it prompts, a line each, or name a file\n"
