#!/usr/bin/env python3
"""Train the demo T5 that ships in `inference/demo_t5`, on text that this script makes itself.

    python scripts/train_demo_t5.py --output_dir inference/demo_t5 --heldout_dir tests/demo

Needs PyTorch and sentencepiece (the extra `goldens`); takes about 15 minutes on a free core. Prints its accuracy
on combinations that it never saw, as the float16 weights answer greedily; the exit code is 1 when the
translations are less than 95 % right, and then nothing is written.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from demo_training import instructions, pairs, t5_evaluation, t5_export
from demo_training.documents import Document
from demo_training.encoder_decoder import T5, T5Shape
from demo_training.optimiser import Optimiser

REQUIRED_ACCURACY = 0.95


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="the model directory to write or replace")
    parser.add_argument("--heldout_dir", type=Path, help="where to write heldout_t5.jsonl")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--tokens", type=int, default=4096, help="source and target tokens a step")
    parser.add_argument("--vocab_size", type=int, default=1024)
    parser.add_argument("--muon_rate", type=float, default=0.02)
    parser.add_argument("--adam_rate", type=float, default=0.004)
    parser.add_argument("--decay", type=float, default=0.05, help="weight decay of the matrices")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--allow_weak", action="store_true", help="write the model whatever its accuracy")
    return parser.parse_args()


def loss_of(model: T5, batch: pairs.PairBatch) -> torch.Tensor:
    """Mean cross entropy over the target tokens; the decoder is given those before each."""
    inputs = F.pad(batch.targets[:, :-1], (1, 0), value=pairs.PAD)
    logits = model.decode(inputs, *model.encode(batch.sources, pairs.PAD))
    return F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=pairs.PAD)


def train(arguments: argparse.Namespace, encoder: pairs.PairEncoder) -> T5:
    model = T5(T5Shape(vocab_size=encoder.sp.vocab_size()))
    optimiser = Optimiser(model, arguments.steps, arguments.muon_rate, arguments.adam_rate, arguments.decay)
    start, average = time.monotonic(), None
    batches = pairs.batches(encoder, arguments.tokens, arguments.seed)
    for step, batch in zip(range(arguments.steps), batches, strict=False):
        loss = loss_of(model, batch)
        loss.backward()
        optimiser.step(step)
        average = loss.item() if average is None else 0.95 * average + 0.05 * loss.item()
        if step % 50 == 49:
            left = (time.monotonic() - start) / (step + 1) * (arguments.steps - step - 1)
            print(f"step {step + 1}/{arguments.steps} loss {average:.4f} left {left / 60:.1f} min", flush=True)
        if step % 300 == 299:
            quick_look(model, encoder)
    return model


def held_out(count: int) -> dict[str, list[Document]]:
    return {kind: instructions.held_out(kind, count, seed=11) for kind in ("translation", "summary")}


def quick_look(model: T5, encoder: pairs.PairEncoder) -> None:
    """Accuracy on a few held-out tasks while training goes on."""
    shares = {name: t5_evaluation.accuracy(model, encoder, documents)[0] for name, documents in held_out(100).items()}
    print("held out: " + ", ".join(f"{name} {share:.1%}" for name, share in shares.items()), flush=True)


def evaluate(model: T5, encoder: pairs.PairEncoder) -> dict[str, float]:
    """Accuracy by kind on held-out tasks, printed with some wrong answers."""
    shares = {}
    for name, documents in held_out(1000).items():
        shares[name], wrong = t5_evaluation.accuracy(model, encoder, documents)
        print(f"{name}: {shares[name]:.2%} of {len(documents)} held-out tasks right")
        for line in wrong[:10]:
            print(f"  {line}")
    return shares


def write_held_out(target: Path) -> None:
    """The held-out tasks that the project's tests use."""
    target.mkdir(parents=True, exist_ok=True)
    documents = [
        document for kind in ("translation", "summary") for document in instructions.held_out(kind, 100, seed=21)
    ]
    rows = [{"kind": doc.kind, "prompt": doc.prompt, "answer": doc.answer} for doc in documents]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (target / "heldout_t5.jsonl").write_text("".join(lines), encoding="utf-8")


def main() -> int:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    torch.use_deterministic_algorithms(True)
    start = time.monotonic()
    texts = instructions.sample_texts(20000, arguments.seed)
    encoder = pairs.PairEncoder(pairs.train_tokenizer(texts, arguments.vocab_size))
    print(f"tokenizer of {encoder.sp.vocab_size()} pieces after {time.monotonic() - start:.0f} s", flush=True)
    model = train(arguments, encoder)
    model.fold_scale()
    t5_export.round_to_float16(model)
    accuracies = evaluate(model, encoder)
    print(f"{time.monotonic() - start:.0f} s in all")
    if accuracies["translation"] < REQUIRED_ACCURACY and not arguments.allow_weak:
        print(f"translations must reach {REQUIRED_ACCURACY:.0%}; nothing was written", file=sys.stderr)
        return 1
    t5_export.write_directory(model, encoder, accuracies, arguments.output_dir)
    if arguments.heldout_dir:
        write_held_out(arguments.heldout_dir)
    return 0


if __name__ == "__main__":
    sys.exit(main())
