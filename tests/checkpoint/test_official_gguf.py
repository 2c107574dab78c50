"""GGUF files that llama.cpp's own converter made of golden models (scripts/gguf_families.py).

Each file is float16, has a vocabulary of single characters, and stands for the model of its golden, whose logits
test_goldens.py compares with transformers'. docs/compatibility.md has llama.cpp's logits beside ours for these files.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_gguf import parameters, source_of

from inference.checkpoint.gguf_names import ARCHITECTURES
from inference.kernels.formats import Format
from inference.models.architecture.config import ModelConfig
from inference.models.architecture.registry import model_config_from

GOLDENS = Path(__file__).parents[1] / "goldens"
FILES = sorted(path.stem for path in (GOLDENS / "gguf").glob("*.gguf"))
# Half of the last of float16's ten bits.
TOLERANCE = 2.0**-11
# What a file does not state, or states otherwise, as keys of config.json.
UNSAID: dict[str, dict[str, Any]] = {
    # llama.cpp knows no window of StarCoder 2.
    "starcoder2": {"sliding_window": None},
    # The converter multiplies the base by the factor, and states the context that Hunyuan was trained with.
    "hunyuan": {
        "rope_parameters": {"rope_theta": 10000.0 * 50.0 ** (16 / 14)},
        "max_position_embeddings": 262144,
    },
}


def golden_of(name: str) -> Path:
    return GOLDENS / "t5" / name if name.startswith("t5") else GOLDENS / name


@pytest.mark.parametrize("name", FILES)
def test_it_is_the_golden_model(name: str) -> None:
    found, golden = source_of(GOLDENS / "gguf" / f"{name}.gguf"), source_of(golden_of(name))
    expected = golden.model
    if name in UNSAID:
        expected = model_config_from({**golden.own_config, **UNSAID[name]}, name)
    if isinstance(expected, ModelConfig):
        assert isinstance(found.model, ModelConfig)
        # Bases are float32 in the file.
        np.testing.assert_allclose(found.model.rope.theta, expected.rope.theta, rtol=1e-6)
        rope = replace(expected.rope, theta=found.model.rope.theta)
        # The converter leaves DeepSeek's multi-token prediction layers out.
        expected = replace(expected, storage=found.model.storage, rope=rope, draft_layers=0)
    assert found.model == expected
    theirs, ours = parameters(found, Format.FLOAT32), parameters(golden, Format.FLOAT32)
    assert theirs.keys() == ours.keys()
    for parameter, array in theirs.items():
        np.testing.assert_allclose(array, ours[parameter], rtol=TOLERANCE, atol=1e-7, err_msg=parameter)


def test_the_files_are_of_the_newest_architectures() -> None:
    """Those whose files test_gguf.py does not write itself."""
    kinds = {source_of(GOLDENS / "gguf" / f"{name}.gguf").model.architecture for name in FILES}
    written = {"llama", "qwen2", "qwen3", "qwen2moe", "qwen3moe", "gemma2", "gemma3", "phi3", "gpt2", "internlm2"}
    written |= {"chatglm", "glm4", "glm4moe", "baichuan"}
    assert kinds >= {ARCHITECTURES[name].ours for name in ARCHITECTURES.keys() - written}
