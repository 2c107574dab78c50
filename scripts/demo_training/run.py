"""Code shared by the training of both demo models: flags, the loop, printed figures, held-out files."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from .documents import Document
from .optimizer import Optimizer

REQUIRED_ACCURACY = 0.95

HeldOut = Mapping[str, list[Document]]
# Returns the share of right answers to some documents, and a line for each wrong one.
Accuracy = Callable[[list[Document]], tuple[float, list[str]]]


def parser(description: str | None, steps: int, vocab_size: int, threads: int) -> argparse.ArgumentParser:
    """Return a parser for the common flags, with model-specific defaults."""
    flags = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--output_dir", type=Path, required=True, help="the model directory to write or replace")
    flags.add_argument("--heldout_dir", type=Path, help="where to write the held-out files of the tests")
    flags.add_argument("--steps", type=int, default=steps)
    flags.add_argument("--vocab_size", type=int, default=vocab_size)
    flags.add_argument("--muon_rate", type=float, default=0.02)
    flags.add_argument("--adam_rate", type=float, default=0.004)
    flags.add_argument("--decay", type=float, default=0.05, help="weight decay of the matrices")
    flags.add_argument("--seed", type=int, default=1)
    flags.add_argument("--threads", type=int, default=threads)
    flags.add_argument("--allow_weak", action="store_true", help="write the model whatever its accuracy")
    return flags


def set_up(arguments: argparse.Namespace) -> None:
    """Make the run reproducible: on one machine the same flags give the same model."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    torch.use_deterministic_algorithms(True)


def train(
    model: nn.Module, losses: Iterator[Tensor], arguments: argparse.Namespace, look: Callable[[], HeldOut], of: Accuracy
) -> None:
    """Make one update per item of `losses`, which is lazy; `look` provides the documents for interim checks."""
    optimizer = Optimizer(model, arguments.steps, arguments.muon_rate, arguments.adam_rate, arguments.decay)
    start, average = time.monotonic(), None
    for step in range(arguments.steps):
        loss = next(losses)
        loss.backward()
        optimizer.step(step)
        average = loss.item() if average is None else 0.95 * average + 0.05 * loss.item()
        if step % 50 == 49:
            left = (time.monotonic() - start) / (step + 1) * (arguments.steps - step - 1)
            print(f"step {step + 1}/{arguments.steps} loss {average:.4f} left {left / 60:.1f} min", flush=True)
        if step % 300 == 299:
            shares = ", ".join(f"{kind} {of(documents)[0]:.1%}" for kind, documents in look().items())
            print(f"held out: {shares}", flush=True)


def evaluate(held_out: HeldOut, of: Accuracy) -> dict[str, float]:
    """Return the accuracy by kind on all held-out documents; print it with some wrong answers."""
    shares = {}
    for kind, documents in held_out.items():
        shares[kind], wrong = of(documents)
        print(f"{kind}: {shares[kind]:.2%} of {len(documents)} held-out questions right")
        for line in wrong[:10]:
            print(f"  {line}")
    return shares


def is_good_enough(shares: Mapping[str, float], required: Iterable[str], arguments: argparse.Namespace) -> bool:
    """Whether every required kind is accurate enough to write the model; prints a message if not."""
    weak = [kind for kind in required if shares[kind] < REQUIRED_ACCURACY]
    if weak and not arguments.allow_weak:
        print(f"{' and '.join(weak)} must reach {REQUIRED_ACCURACY:.0%}; nothing was written", file=sys.stderr)
        return False
    return True


def write_questions(path: Path, documents: Iterable[Document]) -> None:
    """Write held-out documents as JSON lines: kind, prompt and answer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"kind": doc.kind, "prompt": doc.prompt, "answer": doc.answer} for doc in documents]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
