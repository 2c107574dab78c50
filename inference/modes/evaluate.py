"""`--run_mode evaluate`: compares answers with references if rows have them, else measures perplexity of texts."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from typing import Any

from inference.context import build_context
from inference.errors import ConfigError, InputError
from inference.generation.model import GenerativeModel
from inference.generation.perplexity import positions_needed as score_positions
from inference.generation.perplexity import score
from inference.models.source import ModelSource, resolve
from inference.modes.call import Call
from inference.modes.check import check_run, nothing_given, prepare, rows_of, say_what_is_used
from inference.modes.follower import join_others
from inference.terminal.output import count, load_progress, say


def run(call: Call) -> int:
    """Evaluates the model.

    Returns:
        The exit code: 0, 3 if rows failed, or 4 if a threshold was missed.
    """
    from inference.evaluate import command

    if command.is_asked_for(call.config, call.values):
        return command.evaluate_answers(call.config, call.values)
    return evaluate_texts(call)


def check(call: Call) -> str:
    from inference.evaluate import command

    if command.is_asked_for(call.config, call.values):
        ready = command.check_evaluation(call.config, call.values)
        return f"{ready.model.source.name}: {count(len(ready.examples), 'row')} with references; ok"
    _check_source(resolve(call.config))
    return check_run(call, encodes_prompts=False)


def _check_source(source: ModelSource) -> None:
    if source.model.decoder_start is not None:
        raise ConfigError(
            f"{source.name} has an encoder: it gives answers probabilities, and not texts",
            "give rows with references (docs/evaluate.md)",
        )


def evaluate_texts(call: Call) -> int:
    """Measures perplexity over texts, one document per prompt; prints one line on standard output."""
    config = call.config
    rows = rows_of(config, call.values)
    prompts = [row.parse() for row in rows]
    if not prompts:
        raise nothing_given(rows)
    job = prepare(replace(call, overwrite=True), rows, encodes_prompts=False)
    _check_source(job.source)
    documents = [
        list(prompt.token_ids) if prompt.token_ids else job.tokenizer.encode(prompt.text or "")
        for prompt in prompts
        if prompt.messages is None
    ]
    if not any(len(document) > 1 for document in documents):
        raise InputError("there is no text of two tokens or more to evaluate", "give --predict_data a file of texts")
    say_what_is_used(job)
    build_context(config)
    kernels, ranks = join_others(config, job.topology)
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
