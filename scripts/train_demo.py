#!/usr/bin/env python3
"""Train the demo model that ships in `inference/demo`, on text that this script generates.

    python scripts/train_demo.py --output_dir inference/demo --heldout_dir tests/demo

Needs PyTorch and sentencepiece (the extra `goldens`); takes about 15 minutes on 2 cores. Prints the accuracy
of the float16 weights' greedy answers on held-out combinations. If less than 95 % of the sums or of the
translations are right, it writes nothing and exits with 1.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from demo_training import batches, evaluation, export, llama_export, run
from demo_training.documents import Document
from demo_training.network import Llama, Shape
from demo_training.tokenizer import Encoder, train_tokenizer

SAMPLES = (
    "Once upon a time",
    "2 + 3 =",
    "Translate to German: the big house",
    "One day, a little girl named Lily",
)


def parse_arguments() -> argparse.Namespace:
    parser = run.parser(__doc__, steps=1800, vocab_size=1280, threads=2)
    parser.add_argument("--rows", type=int, default=8, help="rows a step")
    parser.add_argument("--row_length", type=int, default=512, help="tokens a row")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--prompt_weight", type=float, default=0.1, help="weight of the loss on prompt tokens")
    return parser.parse_args()


def loss_of(model: Llama, batch: batches.Batch) -> torch.Tensor:
    """Return the weighted mean cross entropy over the predictions; those with weight 0 are not computed."""
    hidden = model.hidden(batch.tokens, batch.positions, batch.mask)
    counted = batch.weights > 0
    losses = F.cross_entropy(model.logits(hidden[counted]), batch.targets[counted], reduction="none")
    weights = batch.weights[counted]
    return (losses * weights).sum() / weights.sum()


def held_out() -> dict[str, list[Document]]:
    return {
        "sums": evaluation.held_out_sums()[::-1],
        "translations": evaluation.held_out_translations(1000, seed=11),
        "chats": evaluation.held_out_chats(300, seed=12),
    }


def write_held_out(target: Path) -> None:
    """Write the held-out questions and text that the project's tests use."""
    documents = evaluation.held_out_sums()[::10][:100] + evaluation.held_out_translations(100, seed=21)
    run.write_questions(target / "heldout.jsonl", documents)
    text = "".join(f"{line}\n" for line in evaluation.held_out_lines(20000, seed=22))
    (target / "heldout.txt").write_text(text, encoding="utf-8")


def main() -> int:
    arguments = parse_arguments()
    run.set_up(arguments)
    start = time.monotonic()
    texts = batches.sample_texts(20000, arguments.seed)
    encoder = Encoder(train_tokenizer(texts, arguments.vocab_size), arguments.prompt_weight)
    print(f"tokenizer of {encoder.sp.vocab_size()} pieces after {time.monotonic() - start:.0f} s", flush=True)
    model = Llama(Shape(vocab_size=encoder.sp.vocab_size(), num_hidden_layers=arguments.layers))
    packer = batches.Packer(encoder, arguments.row_length, arguments.seed)
    losses = (loss_of(model, packer.batch(arguments.rows)) for _ in range(arguments.steps))

    def accuracy(documents: list[Document]) -> tuple[float, list[str]]:
        return evaluation.accuracy(model, encoder, documents)

    def quick_look() -> dict[str, list[Document]]:
        return {kind: documents[:100] for kind, documents in held_out().items()}

    run.train(model, losses, arguments, quick_look, accuracy)
    export.round_to_float16(model)
    accuracies = run.evaluate(held_out(), accuracy)
    for prompt in SAMPLES:
        print(f"{prompt}{evaluation.greedy(model, encoder, [prompt], limit=256)[0]}\n")
    print(f"{time.monotonic() - start:.0f} s in all")
    if not run.is_good_enough(accuracies, ("sums", "translations"), arguments):
        return 1
    llama_export.write_llama(model, encoder, accuracies, arguments.output_dir)
    if arguments.heldout_dir:
        write_held_out(arguments.heldout_dir)
    return 0


if __name__ == "__main__":
    sys.exit(main())
