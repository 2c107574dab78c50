"""What the command line says about itself: help, version, models, config, checks, completion."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from inference import __version__, load_config
from inference.cli.model_list import HEADER, memory_of, sizes_of
from inference.cli.options import build_command
from inference.config.flags import FLAGS
from inference.config.locate import place_on_disk
from inference.config.presets import list_presets
from inference.config.run_modes import RUN_MODES
from inference.kernels.formats import Format
from inference.models.weights.weight_formats import weight_bytes

ROOT = Path(__file__).parents[2]

HEADINGS = ["Run:", "Model:", "Device:", "Generation:", "Output:", "Information:", "Examples:"]


def test_help_is_grouped_with_defaults_and_examples(cli):
    result = cli("--help-all").answered()
    assert result.err == ""
    assert [line for line in result.out.splitlines() if line in HEADINGS] == HEADINGS
    words = " ".join(result.out.split())
    for flag in FLAGS:
        # What only training uses is accepted, and would only be in the way here.
        assert (re.search(rf"{flag.name}\b", result.out) is not None) == flag.acted_on
    assert "0 among all. [default: 50]" in words
    assert "[default: CPU]" in words
    assert "--key" not in result.out


def test_help_fits_a_screen_a_group(cli):
    first = cli("--help").answered().out
    assert cli("-h").out == first
    assert [line for line in first.splitlines() if line in HEADINGS] == ["Run:", "Examples:"]
    assert "--help GROUP (model, device, generation," in first
    device = cli("--help", "device").answered().out
    assert "--threads INTEGER" in device or "--threads INT" in device
    assert "--temperature" not in device and len(device.splitlines()) <= 30
    assert cli("--help", "nosuch").error().startswith("--help: there is no group of flags 'nosuch'; there are run, ")
    everything = cli("--help-all").out
    assert "{}" not in everything
    # A switch needs no value, and help shows none.
    assert re.search(r"^  --chat  +Render prompts with the model's chat\s+template\.", everything, re.M)
    assert "template. [default: off]" in " ".join(everything.split())
    assert "A flag without a value is a switch: --chat turns it on, --chat False off." in everything
    for group in ("model", "generation", "output", "evaluation", "information"):
        assert len(cli("--help", group).out.splitlines()) <= 45


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--weight-dtype", "bf16"], "weight_dtype: "),
        (["--kv-cache-dtype=fp16"], "kv_cache_dtype: "),
        (["--threads", "3"], "threads: 3  # --threads"),
        (["--max-new-tokens", "7"], "max_new_tokens: 7  # --max_new_tokens"),
        (["--device-target", "cpu"], "device_target: "),
    ],
)
def test_flags_and_values_in_common_spellings(cli, arguments, line):
    assert line in cli.demo(*arguments, "--print_config").answered().out


@pytest.mark.parametrize("flag", ["--config", "--model"])
def test_a_model_needs_no_config(cli, flag):
    demo = str(ROOT / "inference" / "demo")
    assert cli(flag, demo, "--check").answered().out.startswith("demo: LlamaForCausalLM, ")
    assert f'pretrained_model_dir: "some/model"  # {flag}' in cli(flag, "some/model", "--print_config").answered().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "a"], "there is no flag --prompt; did you mean '--predict_data'?"),
        (["--engine.threads", "100000"], "--engine.threads: engine.threads must be at most 1024, got 100000"),
        (
            ["--model.model_config.rms_norm_eps", "32"],
            "--model.model_config.rms_norm_eps: model.model_config.rms_norm_eps must be less than 1, got 32",
        ),
    ],
)
def test_mistakes_at_first_use(cli, arguments, message):
    assert cli.demo(*arguments, "--check").error() == message


def test_a_directory_is_not_a_prompt(cli):
    (cli.write("prompts/a.txt", "a").parent).is_dir()
    message = "--predict_data: prompts is a directory; name its files: 'prompts/*.txt'"
    assert cli.demo("--predict_data", "prompts", "--check").error() == message


def test_yaml_anchors_tabs_and_many_mistakes(cli):
    cli.write("anchors.yaml", "x-shared: &shared {top_k: 3}\ngeneration_config: *shared\n")
    assert "top_k: 3" in cli("--config", "anchors.yaml", "--print_config").answered().out
    cli.write("tab.yaml", "seed: 1\nengine:\n\tthreads: 2\n")
    message = "tab.yaml:3: not valid YAML: the line is indented with a tab; use spaces"
    assert cli("--config", "tab.yaml", "--check").error() == message
    cli.write("many.yaml", "".join(f"key{number}: 1\n" for number in range(2_000)))
    assert "; and 1,999 more: " in cli("--config", "many.yaml", "--check").error()


def test_version(cli):
    assert cli("--version").answered().out == f"mindspore-inference {__version__}\n"


def test_list_models(cli):
    cli.write("checkpoint_download/qwen3_8b/config.json", "{}")
    header, *lines = cli("--list_models").answered().out.partition("\n\n")[0].splitlines()
    assert re.split("  +", header) == list(HEADER)
    assert [line.split()[0] for line in lines] == [preset.name for preset in list_presets()]
    rows = [re.split("  +", line) for line in lines]
    llama = ["llama2_7b", "6.7 B", "4,096", "13.5 GB", "7.2 GB", "3.9 GB", "-", "meta-llama/Llama-2-7b-hf"]
    assert llama in rows
    assert ["demo", "1.8 M", "512", "3.6 MB", "1.9 MB", "1.1 MB", "this package", "-"] in rows
    assert [row[6] for row in rows if row[0] == "qwen3_8b"] == ["checkpoint_download"]
    for column in ("on disk", "Hugging Face"):
        start = header.index(column)
        assert all(line[start - 1] == " " != line[start] for line in lines), "the columns are not below each other"


def test_models_in_the_hub_cache_are_on_disk(tmp_path, monkeypatch):
    for variable, folder in (
        ("HF_HUB_CACHE", "cache"),
        ("HF_HOME", "home/hub"),
        ("XDG_CACHE_HOME", "x/huggingface/hub"),
    ):
        monkeypatch.delenv("HF_HUB_CACHE", raising=False)
        monkeypatch.delenv("HF_HOME", raising=False)
        monkeypatch.setenv(variable, str(tmp_path / folder.split("/")[0]))
        assert place_on_disk("qwen3_8b", "Qwen/Qwen3-8B") is None
        snapshot = tmp_path / folder / "models--Qwen--Qwen3-8B" / "snapshots" / "0123"
        snapshot.mkdir(parents=True)
        (snapshot / "model-00001-of-00002.safetensors").touch()
        assert place_on_disk("qwen3_8b", "Qwen/Qwen3-8B") == "hub cache"


@pytest.mark.parametrize("name", ["demo", "qwen3_0_6b", "llama3_1_8b", "flan_t5_base", "gemma3_270m"])
def test_the_memory_of_a_preset_equals_its_weights(name):
    preset = next(preset for preset in list_presets() if preset.name == name)
    model = sizes_of(preset)
    found = memory_of(preset.parameters or model.num_parameters, model)
    for size, dtype in zip(found, (Format.FLOAT16, Format.INT8, Format.INT4), strict=True):
        assert size == pytest.approx(weight_bytes(model, dtype), rel=0.03)


@pytest.mark.parametrize("arguments", [["--help"], ["--check", "--predict_data", "a"], ["--seed", "x"], ["--sed", "1"]])
def test_mindspore_is_not_imported(cli, arguments):
    words = cli.words(("--config", "demo", *arguments))
    done = subprocess.run([words[0], "-X", "importtime", *words[1:]], env=cli.environment, capture_output=True)
    imported = {line.rpartition(b"|")[2].strip().split(b".")[0] for line in done.stderr.splitlines()}
    assert b"click" in imported
    assert not imported & {b"mindspore", b"mindformers", b"torch", b"transformers", b"huggingface_hub"}


def test_print_config_reads_back_the_same(cli):
    flags = ("--temperature", "0.5", "--stop", "no", "--options", "processor.chat=True", "--engine.threads", "2")
    first = cli.demo(*flags, "--print_config").answered()
    assert "temperature: 0.5  # --temperature" in first.out
    assert 'stop: ["no"]  # --stop' in first.out
    assert "chat: true  # --options" in first.out
    assert "threads: 2  # --engine.threads" in first.out
    assert re.search(r'pretrained_model_dir: "demo"  # .*predict_demo.yaml:\d+', first.out)
    printed = cli.write("printed.yaml", first.out)
    assert load_config(printed).generation().temperature == 0.5
    second = cli("--config", "printed.yaml", "--print_config").answered()
    assert without_comments(second.out) == without_comments(first.out)


def test_pipes_are_utf8_in_any_locale(cli):
    cli.environment |= {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    assert 'stop: ["größer", "大"]' in cli.demo("--stop", "größer", "大", "--print_config").answered().out


def without_comments(text: str) -> list[str]:
    return [line.partition("  #")[0] for line in text.splitlines()]


def test_check_reports_what_would_run_and_lists_keys_without_effect(cli):
    config = "base_config: {}\nrunner_config:\n  epochs: 3\nmodel:\n  model_config:\n    batch_size: 4\n"
    cli.write("mine.yaml", config.format(next(p.path for p in list_presets() if p.name == "demo")))
    result = cli("--config", "mine.yaml", "--check", "--predict_data", "a", "b", "--profile", "True").answered()
    first, *unused = result.out.splitlines()
    assert first.startswith("demo: LlamaForCausalLM, 1.8 M parameters, context 512, weights ")
    assert first.endswith("; 2 prompts; ok")
    assert unused == [
        "no effect: model.model_config.batch_size (mine.yaml:6)",
        "no effect: runner_config (mine.yaml:2)",
        "no effect: profile (--profile)",
    ]


def test_check_needs_no_prompt(cli):
    assert cli.demo("--check").answered().out.endswith("; 0 prompts; ok\n")


def test_mindformers_training_flags_are_accepted(cli):
    flags = [word for flag in FLAGS if not flag.acted_on for word in (flag.name, "1" if flag.kind is int else "True")]
    unused = cli.demo("--check", *flags).answered().out.splitlines()[1:]
    assert len(unused) >= 12
    assert all(line.startswith("no effect: ") for line in unused)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(cli, shell):
    assert "_RUN_INFERENCE_COMPLETE" in cli("--show_completion", shell).answered().out


def test_completion_offers_flags_and_choices(cli):
    cli.environment |= {"_RUN_INFERENCE_COMPLETE": "bash_complete", "COMP_CWORD": "1"}
    cli.environment["COMP_WORDS"] = "run_inference.py --max"
    names = ("new_tokens", "length", "errors", "score", "drop")
    assert cli().out.split() == [f"plain,--max_{name}" for name in names]
    cli.environment |= {"COMP_WORDS": "run_inference.py --output_format m", "COMP_CWORD": "2"}
    assert cli().out.split() == ["plain,mindformers"]


def test_options_may_hold_any_typed_value(cli):
    values = {
        "generation_config.do_sample=False": "do_sample: false",
        "generation_config.eos_token_id=2,7": "eos_token_id: [2, 7]",
        "generation_config.stop=[a, b]": 'stop: ["a", "b"]',
        "model.model_config.rms_norm_eps=1e-5": "rms_norm_eps: 1e-05",
        "load_checkpoint=null": 'pretrained_model_dir: "demo"',
    }
    printed = cli.demo("--options", *values, "--print_config").answered().out
    for line in values.values():
        assert f"{line}  # " in printed
    assert not re.search("^load_checkpoint", printed, re.MULTILINE)


def test_the_command_line_outranks_the_yaml(cli):
    cli.write("mine.yaml", "seed: 1\ngeneration_config: {max_new_tokens: 7, top_k: 3}\n")
    printed = cli("--config", "mine.yaml", "--print_config", "--max_length", "9", "--top_k", "4").answered().out
    assert "max_length: 9" in printed
    assert "max_new_tokens" not in printed
    assert "top_k: 4  # --top_k" in printed
    assert "seed: 1  # mine.yaml:1" in printed


def test_python_m_inference_is_the_command_line(cli):
    words = [sys.executable, "-m", "inference", "--version"]
    done = subprocess.run(words, env=cli.environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"mindspore-inference {__version__}\n")


def test_the_command_is_built_once():
    def callback(**given: object) -> int:
        return 0

    assert build_command(callback) is build_command(callback)


@pytest.mark.parametrize("name", RUN_MODES)
def test_every_run_mode_is_a_module_of_its_name(name):
    module = importlib.import_module(f"inference.modes.{name}")
    assert callable(module.run) and callable(module.check)


@pytest.mark.parametrize("name", [name for name, mode in RUN_MODES.items() if not mode.takes_prompts])
def test_a_run_mode_without_prompts_rejects_them(cli, name):
    message = f"--predict_data: run_mode {name} takes no prompts; leave it out"
    assert cli.demo("--run_mode", name, "--predict_data", "a").error() == message
