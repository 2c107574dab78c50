"""Stock MindFormers drives this project's networks on a CPU, and gets this project's tokens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "inference" / "demo"
DRIVE = Path(__file__).with_name("drive.py")
SUMS = {"text_generation_text": ["12 + 7 = 19"]}
HOUSE = {"text_generation_text": ["Translate to German: the big house das große Haus"]}
# MindFormers' names of Llama's tensors.
NAMES = {
    "embed_tokens.weight": "tok_embeddings.embedding_weight",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.norm.": "model.norm_out.",
}

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("mindformers")]


@pytest.fixture(scope="module")
def results(mindformers: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of `drive.py`, all of which runs in one process: importing mindformers alone takes 6 to 10 seconds."""
    place = tmp_path_factory.mktemp("drive")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OM_MODULES_CACHE": str(place / "modules")}
    words = [sys.executable, str(DRIVE), str(DEMO), json.dumps(NAMES)]
    done = subprocess.run(words, cwd=place, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    read: dict[str, Any] = json.loads((place / "results.json").read_text())
    return read


@pytest.fixture(scope="module")
def ours(graph_mode):
    from inference import AutoModel

    return AutoModel.from_pretrained("demo")


def test_a_yaml_becomes_our_config(results) -> None:
    assert results["config"] == ["InferenceModelConfig", 4, 30]


def test_generate_gives_our_tokens(results, ours) -> None:
    rows = [[1, 1205, 1227], [1, 1212, 1240, 288, 1205]]
    assert results["one row"] == ours.generate(rows[0], max_length=30, do_sample=False)
    assert results["batch"] == results["no cache"] == ours.generate(rows, max_new_tokens=12, do_sample=False)


def test_sampling_runs_on_a_cpu(results) -> None:
    """In MindFormers' own way: its seeds are those of numpy."""
    one, again, other = results["sampled"]
    assert one == again != other
    assert [row[:3] for row in one] == [[1, 1205, 1227], [1, 1212, 1240]] and max(map(len, one)) <= 20


def test_pipeline_gives_our_text(results) -> None:
    assert results["pipeline"] == [SUMS, HOUSE]


def test_trainer_loads_a_ckpt_with_names_of_mindformers(results) -> None:
    assert results["trainer, ckpt"] == [SUMS]


def test_register_path_replaces_stock_classes_with_ours(results) -> None:
    both = {"text_generation_text": [SUMS["text_generation_text"][0], HOUSE["text_generation_text"][0]]}
    assert results["trainer, register_path"] == [both]
    assert results["saved"] == str([both])


def test_trainer_runs_the_newer_style(results) -> None:
    ((text, other),) = [item["text_generation_text"] for item in results["trainer, new style"]]
    assert (text, other) == (SUMS["text_generation_text"][0], HOUSE["text_generation_text"][0])


def test_missing_weights_are_reported(results) -> None:
    assert results["no weights"].startswith("InferenceError: the model has no weights; name them as load_checkpoint")


def test_nothing_else_imports_mindformers() -> None:
    """A whole run on a CPU, with mindformers within reach."""
    program = (
        "import sys\n"
        "from inference import AutoModel, AutoTokenizer, pipeline\n"
        "pipe = pipeline('text_generation', model=AutoModel.from_pretrained('demo'), "
        "tokenizer=AutoTokenizer.from_pretrained('demo'))\n"
        "assert pipe('12 + 7 =')[0]['text_generation_text'] == ['12 + 7 = 19']\n"
        "import inference.cli.main, inference.modes, inference.api.llm, inference.mindformers_bridge\n"
        "sys.exit('mindformers' in sys.modules and 'mindformers was imported')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
