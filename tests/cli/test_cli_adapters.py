"""Adapters by the row, as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

LAYERS, HIDDEN = 4, 192  # of the demo model


def save_adapter(directory: Path) -> Path:
    """An adapter that turns the attention of the demo model over."""
    directory.mkdir()
    rng, tensors = np.random.default_rng(0), {}
    for layer in range(LAYERS):
        name = f"base_model.model.model.layers.{layer}.self_attn.o_proj.lora_"
        tensors[f"{name}A.weight"] = rng.standard_normal((4, HIDDEN)).astype(np.float32)
        tensors[f"{name}B.weight"] = rng.standard_normal((HIDDEN, 4)).astype(np.float32)
    save_file(tensors, directory / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["o_proj"]}
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    return directory


def test_rows_name_their_adapters(cli, tmp_path):
    adapter = f"turned={save_adapter(tmp_path / 'lora')}"
    (tmp_path / "rows.jsonl").write_text(
        '{"prompt": "12 + 7 =", "custom_id": "config"}\n'
        '{"prompt": "12 + 7 =", "custom_id": "plain", "adapter_id": ""}\n'
        '{"prompt": "12 + 7 =", "custom_id": "own", "adapter_id": "turned"}\n'
        '{"prompt": "12 + 7 =", "custom_id": "wrong", "adapter_id": "turn"}\n'
    )
    words = ("--predict_data", tmp_path / "rows.jsonl", "--output_format", "json", "--adapter", adapter)
    result = cli.demo(*words, "--adapter_id", "turned", "--max_new_tokens", "8")
    assert result.code == 3, result.err
    rows = result.by_id
    assert rows["plain"]["text"] == " 19"
    assert rows["own"]["text"] == rows["config"]["text"] != " 19"
    assert "rows.jsonl:4: adapter_id 'turn' is not an adapter of this model" in json.dumps(rows["wrong"])
    wrong = "--adapter_id: adapter_id 'turn' is not an adapter of this run; there are turned"
    assert cli.demo(*words, "--adapter_id", "turn").error() == wrong
