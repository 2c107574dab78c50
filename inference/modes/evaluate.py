"""`--run_mode evaluate`: compares answers with references if rows have them, else measures perplexity of texts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from inference.config import InferenceConfig
from inference.context import build_context
from inference.errors import ConfigError, InputError
from inference.generation.model import GenerativeModel, make_encoder
from inference.generation.perplexity import compare, score
from inference.generation.perplexity import positions_needed as score_positions
from inference.inputs.prompts import Prompt
from inference.models.source import ModelSource, resolve
from inference.models.weights.sharding import Pairs
from inference.modes.call import Call
from inference.modes.check import check_run, nothing_given, prepare, rows_of, say_what_is_used
from inference.modes.follower import join_others
from inference.terminal.output import count, load_progress, say
from inference.tokenizer.base import Tokenizer


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
    source = resolve(call.config)
    _check_source(source)
    _baseline(call.config, source)
    return check_run(call, encodes_prompts=False)


def _check_source(source: ModelSource) -> None:
    if source.model.decoder_start is not None:
        raise ConfigError(
            f"{source.name} has an encoder: it gives answers probabilities, and not texts",
            "give rows with references (docs/evaluate.md)",
        )


def _baseline(config: InferenceConfig, source: ModelSource) -> ModelSource | None:
    """Finds the model whose predictions are compared token by token, if there is one.

    Raises:
        ConfigError: it has no predictions, another vocabulary, or the run has several ranks.
    """
    name = config.evaluate.compare_with
    if name is None:
        return None
    where = config.origin("evaluate.compare_with")
    if name.lower().endswith(".json"):
        raise ConfigError(
            f"{where}: {name} is the result of an evaluation, and texts are compared by two models' predictions",
            "give a YAML file or a preset, or rows with references",
        )
    if config.use_parallel:
        raise ConfigError(f"{where}: two models are compared in one process", "leave out use_parallel")
    from inference.evaluate.command import config_of_other

    other = resolve(config_of_other(name))
    _check_source(other)
    if other.model.vocab_size != source.model.vocab_size:
        raise ConfigError(
            f"{where}: {name} has {other.model.vocab_size:,} tokens and {source.name} {source.model.vocab_size:,}, so "
            "their predictions cannot be compared",
            "compare models of one vocabulary",
        )
    return other


def evaluate_texts(call: Call) -> int:
    """Measures perplexity over texts, one document per prompt; prints a line or two on standard output.

    With `compare_with`, the other model's predictions are the baseline for the divergence.
    """
    config = call.config
    rows = rows_of(config, call.values)
    prompts = [row.parse() for row in rows]
    if not prompts:
        raise nothing_given(rows)
    job = prepare(replace(call, overwrite=True), rows, encodes_prompts=False)
    _check_source(job.source)
    other = _baseline(config, job.source)
    documents, other_adapter = _documents(prompts, job.tokenizer), 0
    if other is not None:
        theirs = make_encoder(other, tokenizer := other.tokenizer())
        other_adapter = theirs.adapter_of(0, theirs.generation)
        if _documents(prompts, tokenizer) != documents:
            raise InputError(
                f"{config.evaluate.compare_with} splits these texts into other tokens than {job.source.name}, so their "
                "predictions cannot be compared",
                "compare models of one tokenizer",
            )
    if not any(len(document) > 1 for document in documents):
        raise InputError("there is no text of two tokens or more to evaluate", "give --predict_data a file of texts")
    say_what_is_used(job)
    build_context(config)
    kernels, ranks = join_others(config, job.topology)
    model = _loaded(job.source, job.pairs, ranks=ranks, kernels=kernels)
    adapter, difference = job.encoder.adapter_of(0, job.encoder.generation), None
    with closing(model):
        if other is None:
            result = score(model.stepper, documents, adapter)
        else:
            with closing(_loaded(other, other.pairs())) as baseline:
                difference = compare(model.stepper, baseline.stepper, documents, (adapter, other_adapter))
            result = difference.score
    figures: dict[str, Any] = {
        "model": job.source.name,
        "weight_dtype": model.runner.weight_format.value,
        "perplexity": result.perplexity,
        "tokens": result.tokens,
        "documents": len(documents),
    }
    if other and difference:
        figures |= {"compared_with": other.name, **difference.as_dict()}
    if config.output.format == "json":
        print(json.dumps(figures))
    else:
        print(
            f"perplexity {result.perplexity:.4f} over {result.tokens:,} tokens of {count(len(documents), 'document')} "
            f"({figures['model']}, {figures['weight_dtype']})"
        )
        if difference:
            print(
                f"beside {figures['compared_with']} (perplexity {figures['baseline_perplexity']:.4f}): KL divergence "
                f"{figures['kl_divergence']:.6f} nats a token (p99 {figures['kl_divergence_p99']:.6f}, "
                f"max {figures['kl_divergence_max']:.6f}), same most likely token {figures['same_argmax']:.2%}"
            )
    return 0


def _loaded(source: ModelSource, pairs: Pairs | None, **settings: Any) -> GenerativeModel:
    """Loads a model with a cache for whole steps of texts."""
    positions, progress = score_positions(source.config.engine.block_size), load_progress(pairs)
    return GenerativeModel(source, pairs, positions=positions, progress=progress, say=say, **settings)


def _documents(prompts: Sequence[Prompt], tokenizer: Tokenizer) -> list[list[int]]:
    """Returns the tokens of the prompts that are texts or ids."""
    return [
        list(prompt.token_ids) if prompt.token_ids else tokenizer.encode(prompt.text or "")
        for prompt in prompts
        if prompt.messages is None
    ]
