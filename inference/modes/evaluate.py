"""`--run_mode evaluate`: against references where rows have them, and by the perplexity of texts otherwise."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from inference.config import InferenceConfig
from inference.context import build_context
from inference.errors import InputError
from inference.generation.model import GenerativeModel
from inference.generation.perplexity import positions_needed as score_positions
from inference.generation.perplexity import score
from inference.modes.check import nothing_given, prepare, rows_of, say_what_is_used
from inference.modes.follower import join_others
from inference.terminal.output import count, load_progress, say


def evaluate(config: InferenceConfig, values: Sequence[str]) -> int:
    """Measures the model: against references where rows have them, and by the perplexity of texts otherwise.

    Returns:
        The exit code: 0, 3 where rows failed, or 4 where a threshold was not kept.
    """
    from inference.evaluate import command

    if command.is_asked_for(config, values):
        return command.evaluate_answers(config, values)
    return evaluate_texts(config, values)


def evaluate_texts(config: InferenceConfig, values: Sequence[str]) -> int:
    """Perplexity over texts, a document for each prompt; one line on standard output."""
    rows = rows_of(config, values)
    prompts = [row.parse() for row in rows]
    if not prompts:
        raise nothing_given(rows)
    job = prepare(config, rows, replace=True)
    documents = [
        list(prompt.token_ids) if prompt.token_ids else job.tokenizer.encode(prompt.text or "")
        for prompt in prompts
        if prompt.messages is None
    ]
    if not any(len(document) > 1 for document in documents):
        raise InputError("there is no text of two tokens or more to evaluate", "give --predict_data a file of texts")
    say_what_is_used(job)
    build_context(config)
    kernels, ranks = join_others(config)
    positions, progress = score_positions(config.engine.block_size), load_progress(job.pairs)
    needs: dict[str, Any] = {"positions": positions, "progress": progress, "say": say}
    model = GenerativeModel(job.source, job.pairs, **needs, ranks=ranks, kernels=kernels)
    with closing(model):
        result = score(model.stepper, documents, job.encoder.adapter_of(0, job.encoder.generation))
    figures = {
        "model": job.source.name,
        "weight_dtype": model.runner.weight_format.value,
        "perplexity": result.perplexity,
        "tokens": result.tokens,
        "documents": len(documents),
    }
    if config.output.format == "json":
        print(json.dumps(figures))
    else:
        print(
            f"perplexity {result.perplexity:.4f} over {result.tokens:,} tokens of {count(len(documents), 'document')} "
            f"({figures['model']}, {figures['weight_dtype']})"
        )
    return 0
