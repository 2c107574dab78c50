"""Writes a model directory with Hugging Face's files and names, first beside its target and then moved there."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from . import phrases


def round_to_float16(model: nn.Module) -> None:
    """Round the weights to float16, so that evaluation uses exactly the weights that are written."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half().float())


def filled(readme: str, model: nn.Module, accuracies: Mapping[str, float]) -> str:
    """Fill a README with the model's size, the number of words that it was trained on, and its accuracies."""
    return readme.format(
        parameters=sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        nouns=len(phrases.nouns()),
        adjectives=len(phrases.ADJECTIVES),
        verbs=len(phrases.VERBS),
        **accuracies,
    )


def write_directory(
    model: nn.Module,
    tokenizer: Mapping[str, bytes],
    documents: Mapping[str, Mapping[str, object]],
    readme: str,
    target: Path,
) -> None:
    """Write the weights, the tokenizer's files, JSON documents and a README to `target`, atomically."""
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    fresh.chmod(0o755)
    tensors = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, fresh / "model.safetensors", metadata={"format": "pt"})
    for name, content in tokenizer.items():
        (fresh / name).write_bytes(content)
    for name, document in documents.items():
        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        (fresh / name).write_text(text, encoding="utf-8")
    (fresh / "README.md").write_text(readme, encoding="utf-8")
    _replace_directory(fresh, target)


def _replace_directory(fresh: Path, target: Path) -> None:
    old = fresh.with_name(fresh.name + "-old")
    if target.exists():
        target.rename(old)
    fresh.rename(target)
    shutil.rmtree(old, ignore_errors=True)
