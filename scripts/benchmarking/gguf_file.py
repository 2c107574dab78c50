"""Converts a Llama or Qwen2 checkpoint to a GGUF file, with the `gguf` package.

    python -m benchmarking.gguf_file MODEL_DIR OUT.gguf f32|f16

Facts of the format (from gguf's constants and llama.cpp's loader): vectors stay float32; the architecture `llama`
rotates neighboring pairs of a head (rope type NORM), so rows of q and k are reordered from Hugging Face's halves,
while `qwen2` rotates halves (NEOX) and keeps their order; a tied head is omitted. No tokenizer is written (`no_vocab`),
because the benchmark passes ids.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
TYPES = {"f32": np.float32, "f16": np.float16}


class Tensors:
    """The tensors of a safetensors file, read one at a time as float32."""

    def __init__(self, path: Path):
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            self.header: dict[str, Any] = json.loads(file.read(size))
        self.header.pop("__metadata__", None)
        self._data = np.memmap(path, np.uint8, "r", offset=8 + size)

    def __getitem__(self, name: str) -> np.ndarray:
        entry = self.header[name]
        start, end = entry["data_offsets"]
        raw = self._data[start:end]
        if entry["dtype"] == "BF16":
            values = (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            values = raw.view({"F32": "<f4", "F16": "<f2"}[entry["dtype"]]).astype(np.float32)
        return values.reshape(entry["shape"])


def gguf_name(name: str) -> str:
    """Return a tensor's name in GGUF."""
    stem, _, kind = name.rpartition(".")
    if stem in NAMES:
        return f"{NAMES[stem]}.{kind}"
    layer, _, part = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{LAYER_NAMES[part]}.{kind}"


def pairs_from_halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Reorder rows of q or k so that the rows of a head that are rotated together become neighbors."""
    size = len(rows) // heads
    order = np.arange(size).reshape(2, size // 2).T.reshape(-1)
    return rows.reshape(heads, size, *rows.shape[1:])[:, order].reshape(rows.shape)


def write(directory: Path, target: Path, dtype: str) -> None:
    """Write `target` atomically, with one tensor in memory at a time."""
    import gguf

    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    tensors = Tensors(directory / "model.safetensors")
    architecture = config["model_type"]
    heads = config["num_attention_heads"]
    part = target.with_name(target.name + ".part")
    writer = gguf.GGUFWriter(part, architecture)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32 if dtype == "f32" else gguf.LlamaFileType.MOSTLY_F16)
    tied = config.get("tie_word_embeddings")
    names = [name for name in tensors.header if not (tied and name == "lm_head.weight")]
    for name in names:
        shape = tensors.header[name]["shape"]
        numbers = np.dtype(_type_of(shape, dtype))
        writer.add_tensor_info(gguf_name(name), shape, numbers, math.prod(shape) * numbers.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name in names:
        values = tensors[name]
        rotated = {"q_proj": heads, "k_proj": config["num_key_value_heads"]}.get(name.split(".")[-2])
        if architecture == "llama" and rotated:
            values = pairs_from_halves(values, rotated)
        writer.write_tensor_data(np.ascontiguousarray(values, _type_of(values.shape, dtype)))
    writer.close()
    part.replace(target)


def _type_of(shape: tuple[int, ...], dtype: str) -> type:
    return np.float32 if len(shape) == 1 else TYPES[dtype]


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
