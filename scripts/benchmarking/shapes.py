"""The measured architectures, and checkpoints of them with random weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

# Values generated at a time, to limit working memory.
VALUES_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class Shape:
    """A Llama or Qwen2 architecture."""

    architecture: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    width: int
    vocabulary: int
    tied: bool

    def config(self) -> dict[str, Any]:
        """Return config.json with all keys that the peers require."""
        is_llama = self.architecture.startswith("Llama")
        return {
            "architectures": [self.architecture],
            "model_type": "llama" if is_llama else "qwen2",
            "torch_dtype": "bfloat16",
            "hidden_act": "silu",
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.width,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.tied,
            "max_position_embeddings": 2048,
            "rope_theta": 10000.0 if is_llama else 1000000.0,
            "rms_norm_eps": 1e-5 if is_llama else 1e-6,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }


SHAPES = {
    "llama-1b": Shape("LlamaForCausalLM", 22, 2048, 32, 4, 5632, 32000, False),
    "qwen2-0.5b": Shape("Qwen2ForCausalLM", 24, 896, 14, 2, 4864, 151936, True),
    "llama-15m": Shape("LlamaForCausalLM", 6, 288, 6, 6, 768, 32000, True),
}


def make_checkpoint(directory: Path, shape: Shape) -> Path:
    """Create a bfloat16 checkpoint of the shape, once and atomically."""
    from inference.models.architecture.registry import model_config_from
    from inference.models.weights.parameters import tensor_places

    values, config = shape.config(), directory / "config.json"
    if config.exists() and json.loads(config.read_text(encoding="utf-8")) == values:
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    config.unlink(missing_ok=True)
    places = tensor_places(model_config_from(values, str(config)))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for place in places:
        end = offset + 2 * int(np.prod(place.shape))
        header[place.name] = {"dtype": "BF16", "shape": place.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = np.random.default_rng(0)
    part = directory / "model.safetensors.part"
    with part.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for place in places:
            for values_ in _values(place.name, place.shape, generator):
                file.write((values_.view(np.uint32) >> 16).astype(np.uint16).tobytes())
    part.replace(directory / "model.safetensors")
    config.write_text(json.dumps(values), encoding="utf-8")
    return directory


def _values(name: str, shape: tuple[int, ...], generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield values: 1 for norms, 0 for biases, normal with a standard deviation of 0.02 for matrices."""
    if len(shape) == 1:
        yield np.full(shape, 0 if name.endswith("bias") else 1, np.float32)
        return
    count = int(np.prod(shape))
    for start in range(0, count, VALUES_AT_ONCE):
        yield generator.standard_normal(min(VALUES_AT_ONCE, count - start), np.float32) * np.float32(0.02)
