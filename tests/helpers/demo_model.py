"""The demo model, loaded once for all tests that use the fixture `model` and do not override it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from inference.config import InferenceConfig, load_config
from inference.generation.model import GenerativeModel
from inference.tokenizer import Tokenizer


def demo_config(**sections: Any) -> InferenceConfig:
    """Return the demo model's config with `sections` added."""
    directory = Path(__file__).parents[2] / "inference" / "demo"
    return load_config({"pretrained_model_dir": str(directory), **sections})


@pytest.fixture(scope="session")
def model(graph_mode: None) -> GenerativeModel:
    config = demo_config(predict_batch_size=16, engine={"kv_cache_memory": "32MiB"})
    return GenerativeModel.from_config(config, say=print)


@pytest.fixture(scope="session")
def tokenizer(model: GenerativeModel) -> Tokenizer:
    return model.source.tokenizer()
