"""T5 cases of the golden files: tiny random models and transformers' results for them. make_goldens.py runs it.

`tests/goldens/t5/<case>/`: config.json, model.safetensors and golden.npz. Everything is computed in float32 on weights
as stored, with eager attention, without a cache, and then checked against a run with a cache. Keys of golden.npz, for
source i of length L and 40 greedy tokens after the start token:

    seed         int64            seed of weights and sources
    lengths      int32 [n]        L of each source
    source_<i>   int32 [L]        token ids
    greedy_<i>   int32 [40]       greedy tokens of the answer; end-of-sequence is ignored
    logits_<i>   float32 [P, V]   logits before tokens 0, 4, 8, ... of the answer
    margin_<i>   float32 [40]     best minus second best logit at each step
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

LENGTHS = (1, 2, 16, 33, 150)
STEPS = 40
EVERY = 4
MIN_MARGIN = 1e-3
MIN_DISTINCT = 6
MAX_SOURCES = 40
START = 0


@dataclass(frozen=True)
class T5Case:
    """One model: keys of its config.json; `written` has those that transformers 5 writes differently."""

    config: dict[str, Any]
    tied: bool = True
    dtype: torch.dtype = torch.float32
    written: dict[str, Any] = field(default_factory=dict)


def sizes(**changes: Any) -> dict[str, Any]:
    common = {
        "architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "is_encoder_decoder": True,
        "vocab_size": 120, "d_model": 32, "d_kv": 6, "d_ff": 40, "num_layers": 2, "num_heads": 4,
        "dropout_rate": 0.0, "layer_norm_epsilon": 1e-6, "decoder_start_token_id": START, "eos_token_id": 1,
        "pad_token_id": 0, "n_positions": 512, "relative_attention_num_buckets": 32,
    }  # fmt: skip
    return common | changes


T5_CASES: dict[str, T5Case] = {
    # The original T5: no num_decoder_layers and no relative_attention_max_distance in its config.json.
    "t5_relu": T5Case(sizes()),
    # v1.1 and FLAN, as transformers 4 wrote them.
    "t5_gated_untied": T5Case(
        sizes(
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
            num_decoder_layers=3,
            relative_attention_num_buckets=12,
            relative_attention_max_distance=20,
        ),
        tied=False,
        dtype=torch.bfloat16,
    ),
    # The same as transformers 5 writes it: declared as tied, but not scaled.
    "t5_untied_v5": T5Case(
        sizes(feed_forward_proj="gated-gelu", tie_word_embeddings=False, num_decoder_layers=1),
        tied=False,
        dtype=torch.float16,
        written={"tie_word_embeddings": True, "scale_decoder_outputs": False},
    ),
}


def _random_tensors(case: T5Case, seed: int) -> dict[str, torch.Tensor]:
    """Return weights that give spread logits and varied greedy text."""
    rng = np.random.default_rng(seed)
    known = {"decoder_start_token_id", "architectures", "model_type"}
    config = transformers.T5Config(**{key: value for key, value in case.config.items() if key not in known})
    tensors = {}
    for name, parameter in sorted(transformers.T5ForConditionalGeneration(config).named_parameters()):
        shape = tuple(parameter.shape)
        if name.endswith("layer_norm.weight"):
            values = 1.0 + 0.2 * rng.standard_normal(shape)
        elif "relative" in name:
            values = 2.0 * rng.standard_normal(shape)
        elif "shared" in name:
            values = 0.4 * rng.standard_normal(shape)
        else:
            values = rng.standard_normal(shape) * 1.8 / shape[1] ** 0.5
        tensors[name] = torch.from_numpy(values.astype(np.float32)).to(case.dtype)
    if not case.tied:
        shape = tuple(tensors["shared.weight"].shape)
        head = rng.standard_normal(shape).astype(np.float32) * 0.4
        tensors["lm_head.weight"] = torch.from_numpy(head).to(case.dtype)
    return tensors


def _save(case: T5Case, seed: int, directory: Path) -> None:
    path = directory / "model.safetensors"
    save_file(_random_tensors(case, seed), path, metadata={"format": "pt"})
    path.chmod(0o644)  # transformers makes it readable only by the owner
    text = json.dumps(case.config | case.written, indent=2, sort_keys=True)
    (directory / "config.json").write_text(text + "\n", encoding="utf-8")


def _load(case: T5Case, directory: Path) -> Any:
    model = transformers.T5ForConditionalGeneration.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    same = torch.equal(model.lm_head.weight, model.shared.weight)
    if same != case.tied or model.config.scale_decoder_outputs != case.tied:
        raise SystemExit(f"{directory.name}: transformers does not tie or scale it as meant")
    stored = load_file(directory / "model.safetensors")
    if not torch.equal(model.shared.weight, stored["shared.weight"].float()):
        raise SystemExit(f"{directory.name}: transformers loads other weights")
    return model


@torch.no_grad()
def _logits(model: Any, source: list[int], answer: list[int]) -> torch.Tensor:
    """Return logits [1 + tokens, V] before each token of the answer and after the last, without a cache."""
    decoder = torch.tensor([[START, *answer]])
    return model(input_ids=torch.tensor([source]), decoder_input_ids=decoder, use_cache=False).logits[0]


@torch.no_grad()
def _cached_greedy(model: Any, source: list[int]) -> list[int]:
    """Return the greedy tokens, using the model's own cache."""
    states = model.encoder(input_ids=torch.tensor([source]))
    step, cache, out = START, None, []
    for _ in range(STEPS):
        result = model(
            encoder_outputs=states, decoder_input_ids=torch.tensor([[step]]), past_key_values=cache, use_cache=True
        )
        cache, step = result.past_key_values, int(result.logits[0, -1].argmax())
        out.append(step)
    return out


def _clear_row(model: Any, rng: np.random.Generator, vocabulary: int, length: int) -> dict[str, np.ndarray] | None:
    """Return a random source with an unambiguous, varied greedy answer, and the answer; None if many tries fail."""
    for _ in range(MAX_SOURCES):
        source = rng.integers(3, vocabulary, length).tolist()
        answer = _cached_greedy(model, source)
        if len(set(answer)) < MIN_DISTINCT:
            continue
        logits = _logits(model, source, answer)[:STEPS]
        best = torch.topk(logits, 2).values
        margins = best[:, 0] - best[:, 1]
        if margins.min() < MIN_MARGIN:
            continue
        if logits.argmax(1).tolist() != answer:
            raise SystemExit("greedy tokens with and without a cache differ")
        return {
            "source": np.array(source, np.int32),
            "greedy": np.array(answer, np.int32),
            "logits": logits[::EVERY].numpy(),
            "margin": margins.numpy(),
        }
    return None


def golden_of_sources(
    model: Any, vocabulary: int, seed: int, lengths: Sequence[int] = LENGTHS
) -> dict[str, np.ndarray] | None:
    """Return the arrays of golden.npz, or None if this seed's text is ambiguous or not varied."""
    rng = np.random.default_rng(seed + 1_000_003)
    arrays = {"seed": np.int64(seed), "lengths": np.array(lengths, np.int32)}
    for i, length in enumerate(lengths):
        row = _clear_row(model, rng, vocabulary, length)
        if row is None:
            return None
        arrays |= {f"{name}_{i}": values for name, values in row.items()}
    return arrays


def make_t5(name: str, directory: Path, seeds: range) -> None:
    """Write the case of the first seed with unambiguous, varied text to `directory`."""
    case = T5_CASES[name]
    for seed in seeds:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        _save(case, seed, directory)
        arrays = golden_of_sources(_load(case, directory), case.config["vocab_size"], seed)
        if arrays is not None:
            np.savez_compressed(directory / "golden.npz", **arrays)
            print(f"{name}: seed {seed}, standard deviation of logits {arrays['logits_4'].std():.2f}", flush=True)
            return
    raise SystemExit(f"{name}: no seed in {seeds} gives clear and varied greedy text")
