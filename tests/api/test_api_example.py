"""MindFormers' script, with only its import line changed, and its command, each as a process of its own."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "mindformers_style.py"
INPUTS = ["I love Beijing, because", "LLaMA is a", "Huawei is a company that"]


def test_the_script_of_mindformers_guide(demo, ckpt, tmp_path, model):
    shutil.copytree(demo, tmp_path / "checkpoint_download" / "my_llama")
    (tmp_path / "checkpoint_download" / "my_llama" / "model.safetensors").unlink()
    done = run(tmp_path, SCRIPT, "my_llama", ckpt)
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    answers, streamed, again = lines[:3], lines[3:6], lines[6:]
    assert answers == again
    texts = [ast.literal_eval(line)["text_generation_text"] for line in answers]
    assert texts == [[text] for text in streamed]
    expected = model.generate([model.source.tokenizer().encode(text) for text in INPUTS], max_length=512)
    assert streamed == [model.source.tokenizer().decode(ids) for ids in expected]
    assert {entry.name for entry in tmp_path.iterdir()} == {"checkpoint_download"}


def run(directory: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Runs one of the repository's scripts in a directory."""
    path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done


def test_a_ckpt_on_the_command_line(demo, ckpt, tmp_path):
    """The sizes are in the YAML, as in MindFormers; the tokenizer is named."""
    sizes = json.loads((demo / "config.json").read_text())
    names = ("vocab_size", "hidden_size", "intermediate_size", "tie_word_embeddings", "num_key_value_heads")
    model = {**{name: sizes[name] for name in names}, "type": "LlamaConfig", "num_layers": 4, "num_heads": 6}
    model |= {"seq_length": 256, "bos_token_id": 1, "eos_token_id": [2, 7], "do_sample": False, "use_past": True}
    config = {"model": {"arch": {"type": "LlamaForCausalLM"}, "model_config": model}}
    (tmp_path / "predict.yaml").write_text(json.dumps(config))
    flags = ("--load_checkpoint", ckpt, "--processor.tokenizer.vocab_file", demo / "tokenizer.model")
    done = run(tmp_path, ROOT / "run_inference.py", "--config", "predict.yaml", *flags, "--predict_data", "12 + 7 =")
    assert done.stdout == " 19\n"
