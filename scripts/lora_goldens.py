"""Adapter cases of the golden files: LoRA directories as PEFT writes them, and transformers' results for their base
models with the adapters merged. make_goldens.py runs it.

`tests/goldens/lora/<case>/`: adapter_config.json, adapter_model.safetensors and golden.npz. The base model is another
case of the golden files. PEFT itself is not used: this script writes W + scale * B A (transposed if the base stores W
transposed) into the base's checkpoint, with each module's scale and rank as the case states them, not as read from
adapter_config.json. Experts are separate modules, as in PEFT with transformers 4. Everything is computed in float32,
with eager attention, without a cache. Keys of golden.npz, for prompt i of length L and 24 greedy tokens (a T5 has those
of t5_goldens.py, and `base`):

    base         text             case of the base model
    seed         int64            seed of adapter and prompts
    lengths      int32 [n]        L of each prompt
    prompt_<i>   int32 [L]        token ids
    logits_<i>   float32 [L, V]   logits at every position
    greedy_<i>   int32 [24]       greedy tokens after the prompt; end-of-sequence is ignored
    margin_<i>   float32 [24]     best minus second best logit at each step
"""

from __future__ import annotations

import json
import math
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from routes import routes_are_clear
from safetensors.numpy import save_file
from safetensors.torch import load_file
from t5_goldens import golden_of_sources

LENGTHS = (2, 17, 33)
STEPS = 24
VOCABULARY = 128
MIN_MARGIN = 2e-3


@dataclass(frozen=True)
class LoraCase:
    """An adapter: its adapter_config.json, and the base's matrices that it adapts, with rank and scale of each."""

    base: str
    config: dict[str, Any]
    modules: str
    rank_and_scale: Callable[[str], tuple[int, float]]
    is_transposed: bool = False


def config(**changes: Any) -> dict[str, Any]:
    common: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "lora_dropout": 0.1,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    return common | changes


def _patterned(module: str) -> tuple[int, float]:
    rank = 6 if module == "model.layers.1.self_attn.q_proj" else 4
    return rank, (3 if module.endswith("down_proj") else 8) / rank


_SOME_EXPERTS = r".*\.self_attn\..*_(proj|mqa)|.*\.mlp\.(shared_experts\.|experts\.[0-4]\.)?(gate|up|down)_proj|lm_head"
LORA_CASES = {
    "llama_patterns": LoraCase(
        "llama2_gqa",
        config(
            r=4,
            lora_alpha=8,
            target_modules=["v_proj", "q_proj", "mlp.down_proj"],
            rank_pattern={"model.layers.1.self_attn.q_proj": 6},
            alpha_pattern={"down_proj": 3},
        ),
        r".*\.(q_proj|v_proj|down_proj)",
        _patterned,
    ),
    "llama_rslora": LoraCase(
        "llama2_gqa",
        config(r=3, lora_alpha=2.5, use_rslora=True, target_modules=r".*\.[02]\..*\.(k|o|gate|up)_proj"),
        r".*\.[02]\..*\.(k|o|gate|up)_proj",
        lambda module: (3, 2.5 / math.sqrt(3)),
    ),
    # Transposed matrices in the base, and fused queries, keys and values.
    "gpt2": LoraCase(
        "gpt2",
        config(r=4, lora_alpha=6, fan_in_fan_out=True, target_modules=["c_attn", "c_proj", "c_fc"]),
        r".*\.(c_attn|c_proj|c_fc)",
        lambda module: (4, 1.5),
        is_transposed=True,
    ),
    "phi3": LoraCase(
        "phi3",
        config(r=2, lora_alpha=4, target_modules="all-linear"),
        r"model\.layers\..*_proj",
        lambda module: (2, 2.0),
    ),
    # Latents with compressed queries, some experts without an adapter, shared experts, and the output head.
    "deepseek_v3": LoraCase(
        "deepseek_v3",
        config(r=2, lora_alpha=3, target_modules=_SOME_EXPERTS),
        _SOME_EXPERTS,
        lambda module: (2, 1.5),
    ),
    # Latents whose queries are projected directly.
    "deepseek_v2_lite": LoraCase(
        "deepseek_v2_lite",
        config(r=3, lora_alpha=6, target_modules=["q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]),
        r".*\.(q_proj|kv_a_proj_with_mqa|kv_b_proj|o_proj)",
        lambda module: (3, 2.0),
    ),
    # Routers, which PEFT treats as ordinary linear layers.
    "mixtral": LoraCase(
        "mixtral",
        config(r=2, lora_alpha=2, target_modules=["v_proj", "w1", "w2", "w3", "gate", "lm_head"]),
        r".*\.(v_proj|w[123]|gate)|lm_head",
        lambda module: (2, 1.0),
    ),
    "t5": LoraCase(
        "t5/t5_gated_untied",
        config(r=3, lora_alpha=3, task_type="SEQ_2_SEQ_LM", target_modules=r".*\.(q|k|v|o|wi_0|wi_1|wo)|lm_head"),
        r".*\.(q|k|v|o|wi_0|wi_1|wo)|lm_head",
        lambda module: (3, 1.0),
    ),
}


def make_lora(name: str, directory: Path, bases: Path, seeds: range) -> None:
    """Write the case of the first seed with unambiguous greedy tokens to `directory`."""
    case = LORA_CASES[name]
    is_t5 = case.base.startswith("t5/")
    kind = transformers.T5ForConditionalGeneration if is_t5 else transformers.AutoModelForCausalLM
    for seed in seeds:
        with tempfile.TemporaryDirectory() as scratch:
            tensors = adapt(bases / case.base, case, np.random.default_rng(seed), Path(scratch))
            model = kind.from_pretrained(scratch, dtype=torch.float32, attn_implementation="eager").eval()
        arrays = golden_of_sources(model, model.config.vocab_size, seed, LENGTHS) if is_t5 else golden(model, seed)
        if arrays is not None:
            break
    else:
        raise SystemExit(f"{name}: no seed in {seeds} gives clear greedy text")
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    (directory / "adapter_model.safetensors").chmod(0o644)
    text = json.dumps(case.config, indent=2, sort_keys=True)
    (directory / "adapter_config.json").write_text(text + "\n", encoding="utf-8")
    np.savez_compressed(directory / "golden.npz", base=np.array(case.base), **arrays)
    print(f"{name}: seed {seed}, {len(tensors) // 2} matrices", flush=True)


def adapt(base: Path, case: LoraCase, rng: np.random.Generator, directory: Path) -> dict[str, np.ndarray]:
    """Write the base with a random adapter merged into it; return the adapter's tensors under PEFT's names."""
    weights: dict[str, np.ndarray] = {}
    for path in base.glob("*.safetensors"):
        weights |= {name: tensor.float().numpy() for name, tensor in load_file(path).items()}
    tensors = {}
    for name, values in sorted(weights.items()):
        module = name.removesuffix(".weight")
        if values.ndim != 2 or not re.fullmatch(case.modules, module):
            continue
        rank, scale = case.rank_and_scale(module)
        rows, columns = reversed(values.shape) if case.is_transposed else values.shape
        down = (rng.standard_normal((rank, columns)) / columns**0.5).astype(np.float32)
        up = (0.5 * rng.standard_normal((rows, rank))).astype(np.float32)
        delta = scale * (up @ down)
        weights[name] = values + (delta.T if case.is_transposed else delta).astype(np.float32)
        tensors[f"base_model.model.{module}.lora_A.weight"] = down
        tensors[f"base_model.model.{module}.lora_B.weight"] = up
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(base / "config.json", directory)
    return tensors


def golden(model: Any, seed: int) -> dict[str, np.ndarray] | None:
    """Return the arrays of golden.npz, or None if a greedy token is ambiguous."""
    rng = np.random.default_rng(seed + 1_000_003)
    arrays = {"seed": np.int64(seed), "lengths": np.array(LENGTHS, np.int32)}
    for i, length in enumerate(LENGTHS):
        tokens, margins = rng.integers(3, VOCABULARY, length).tolist(), []
        arrays[f"prompt_{i}"] = np.array(tokens, np.int32)
        for step in range(STEPS):
            with torch.no_grad():
                logits = model(torch.tensor([tokens]), use_cache=False).logits[0]
            if step == 0:
                arrays[f"logits_{i}"] = logits.numpy()
            best = torch.topk(logits[-1], 2)
            margins.append(float(best.values[0] - best.values[1]))
            if margins[-1] < MIN_MARGIN:
                return None
            tokens.append(int(best.indices[0]))
        arrays[f"greedy_{i}"] = np.array(tokens[length:], np.int32)
        arrays[f"margin_{i}"] = np.array(margins, np.float32)
    rows = [arrays[f"prompt_{i}"].tolist() + arrays[f"greedy_{i}"].tolist() for i in range(len(LENGTHS))]
    return arrays if routes_are_clear(model, rows) else None
