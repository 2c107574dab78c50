#!/usr/bin/env python3
"""Train the demo model that ships in `inference/demo`, on text that this script makes itself.

    python scripts/train_demo.py --output_dir inference/demo --heldout_dir tests/demo

Needs PyTorch and sentencepiece (the extra `goldens`); takes about 15 minutes on 2 cores. Prints its accuracy
on combinations that it never saw, as the float16 weights answer greedily; the exit code is 1 when the sums or
the translations are less than 95 % right, and then nothing is written.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from demo_training import batches, evaluation, export
from demo_training.documents import Document
from demo_training.network import Llama, Shape
from demo_training.optimiser import Optimiser
from demo_training.tokenizer import Encoder, train_tokenizer

REQUIRED_ACCURACY = 0.95
SAMPLES = (
    "Once upon a time",
    "2 + 3 =",
    "Translate to German: the big house",
    "One day, a little girl named Lily",
)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="the model directory to write or replace")
    parser.add_argument("--heldout_dir", type=Path, help="where to write heldout.jsonl and heldout.txt")
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument("--rows", type=int, default=8, help="rows a step")
    parser.add_argument("--row_length", type=int, default=512, help="tokens a row")
    parser.add_argument("--vocab_size", type=int, default=1280)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--prompt_weight", type=float, default=0.1, help="weight of the loss on prompt tokens")
    parser.add_argument("--muon_rate", type=float, default=0.02)
    parser.add_argument("--adam_rate", type=float, default=0.004)
    parser.add_argument("--decay", type=float, default=0.05, help="weight decay of the matrices")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--allow_weak", action="store_true", help="write the model whatever its accuracy")
    return parser.parse_args()


def loss_of(model: Llama, batch: batches.Batch) -> torch.Tensor:
    """Mean cross entropy over the predictions, by their weights; those without weight are not computed."""
    hidden = model.hidden(batch.tokens, batch.positions, batch.mask)
    counted = batch.weights > 0
    losses = F.cross_entropy(model.logits(hidden[counted]), batch.targets[counted], reduction="none")
    weights = batch.weights[counted]
    return (losses * weights).sum() / weights.sum()


def train(arguments: argparse.Namespace, encoder: Encoder) -> Llama:
    model = Llama(Shape(vocab_size=encoder.sp.vocab_size(), num_hidden_layers=arguments.layers))
    rates = (arguments.muon_rate, arguments.adam_rate, arguments.decay)
    optimiser = Optimiser(model, arguments.steps, *rates)
    packer = batches.Packer(encoder, arguments.row_length, arguments.seed)
    start, average = time.monotonic(), None
    for step in range(arguments.steps):
        loss = loss_of(model, packer.batch(arguments.rows))
        loss.backward()
        optimiser.step(step)
        average = loss.item() if average is None else 0.95 * average + 0.05 * loss.item()
        if step % 50 == 49:
            left = (time.monotonic() - start) / (step + 1) * (arguments.steps - step - 1)
            print(f"step {step + 1}/{arguments.steps} loss {average:.4f} left {left / 60:.1f} min", flush=True)
        if step % 300 == 299:
            quick_look(model, encoder)
    return model


def quick_look(model: Llama, encoder: Encoder) -> None:
    """Accuracy on a few held-out questions while training goes on."""
    shares = {name: evaluation.accuracy(model, encoder, documents[:100])[0] for name, documents in held_out().items()}
    print("held out: " + ", ".join(f"{name} {share:.1%}" for name, share in shares.items()), flush=True)


def held_out() -> dict[str, list[Document]]:
    return {
        "sums": evaluation.held_out_sums()[::-1],
        "translations": evaluation.held_out_translations(1000, seed=11),
        "chats": evaluation.held_out_chats(300, seed=12),
    }


def evaluate(model: Llama, encoder: Encoder) -> dict[str, float]:
    """Accuracy by kind on all held-out questions, printed with some wrong answers and some samples."""
    shares = {}
    for name, documents in held_out().items():
        shares[name], wrong = evaluation.accuracy(model, encoder, documents)
        print(f"{name}: {shares[name]:.2%} of {len(documents)} held-out questions right")
        for line in wrong[:10]:
            print(f"  {line}")
    for prompt in SAMPLES:
        print(f"{prompt}{evaluation.greedy(model, encoder, [prompt], limit=256)[0]}\n")
    return shares


def write_held_out(target: Path) -> None:
    """The held-out questions and text that the project's tests use."""
    target.mkdir(parents=True, exist_ok=True)
    documents = evaluation.held_out_sums()[::10][:100] + evaluation.held_out_translations(100, seed=21)
    rows = [{"kind": doc.kind, "prompt": doc.prompt, "answer": doc.answer} for doc in documents]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (target / "heldout.jsonl").write_text("".join(lines), encoding="utf-8")
    text = "".join(f"{line}\n" for line in evaluation.held_out_lines(20000, seed=22))
    (target / "heldout.txt").write_text(text, encoding="utf-8")


def main() -> int:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    torch.use_deterministic_algorithms(True)
    start = time.monotonic()
    texts = batches.sample_texts(20000, arguments.seed)
    encoder = Encoder(train_tokenizer(texts, arguments.vocab_size), arguments.prompt_weight)
    print(f"tokenizer of {encoder.sp.vocab_size()} pieces after {time.monotonic() - start:.0f} s", flush=True)
    model = train(arguments, encoder)
    export.round_to_float16(model)
    accuracies = evaluate(model, encoder)
    print(f"{time.monotonic() - start:.0f} s in all")
    if min(accuracies["sums"], accuracies["translations"]) < REQUIRED_ACCURACY and not arguments.allow_weak:
        print(f"sums and translations must reach {REQUIRED_ACCURACY:.0%}; nothing was written", file=sys.stderr)
        return 1
    export.write_directory(model, encoder, accuracies, arguments.output_dir)
    if arguments.heldout_dir:
        write_held_out(arguments.heldout_dir)
    return 0


if __name__ == "__main__":
    sys.exit(main())
