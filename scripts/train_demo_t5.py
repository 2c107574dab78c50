#!/usr/bin/env python3
"""Train the demo T5 that ships in `inference/demo_t5`, on text that this script generates.

    python scripts/train_demo_t5.py --output_dir inference/demo_t5 --heldout_dir tests/demo

Needs PyTorch and sentencepiece (the extra `goldens`); takes about 15 minutes on an idle core. Prints the accuracy
of the float16 weights' greedy answers on held-out combinations. If less than 95 % of the translations are right,
it writes nothing and exits with 1.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch
import torch.nn.functional as F

from demo_training import export, instructions, pairs, run, t5_evaluation, t5_export
from demo_training.documents import Document
from demo_training.encoder_decoder import T5, T5Shape


def parse_arguments() -> argparse.Namespace:
    parser = run.parser(__doc__, steps=1200, vocab_size=1024, threads=1)
    parser.add_argument("--tokens", type=int, default=4096, help="source and target tokens a step")
    return parser.parse_args()


def loss_of(model: T5, batch: pairs.PairBatch) -> torch.Tensor:
    """Return the mean cross entropy over the target tokens, with teacher forcing."""
    inputs = F.pad(batch.targets[:, :-1], (1, 0), value=pairs.PAD)
    logits = model.decode(inputs, *model.encode(batch.sources, pairs.PAD))
    return F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=pairs.PAD)


def held_out(count: int, seed: int = 11) -> dict[str, list[Document]]:
    return {kind: instructions.held_out(kind, count, seed=seed) for kind in ("translation", "summary")}


def main() -> int:
    arguments = parse_arguments()
    run.set_up(arguments)
    start = time.monotonic()
    texts = instructions.sample_texts(20000, arguments.seed)
    encoder = pairs.PairEncoder(pairs.train_tokenizer(texts, arguments.vocab_size))
    print(f"tokenizer of {encoder.sp.vocab_size()} pieces after {time.monotonic() - start:.0f} s", flush=True)
    model = T5(T5Shape(vocab_size=encoder.sp.vocab_size()))
    losses = (loss_of(model, batch) for batch in pairs.batches(encoder, arguments.tokens, arguments.seed))

    def accuracy(documents: list[Document]) -> tuple[float, list[str]]:
        return t5_evaluation.accuracy(model, encoder, documents)

    run.train(model, losses, arguments, lambda: held_out(100), accuracy)
    model.fold_scale()
    export.round_to_float16(model)
    accuracies = run.evaluate(held_out(1000), accuracy)
    print(f"{time.monotonic() - start:.0f} s in all")
    if not run.is_good_enough(accuracies, ("translation",), arguments):
        return 1
    t5_export.write_t5(model, encoder, accuracies, arguments.output_dir)
    if arguments.heldout_dir:
        documents = [document for kind in held_out(100, seed=21).values() for document in kind]
        run.write_questions(arguments.heldout_dir / "heldout_t5.jsonl", documents)
    return 0


if __name__ == "__main__":
    sys.exit(main())
