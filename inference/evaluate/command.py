"""`--run_mode evaluate` on prompts with references: checks everything, then runs the models one after the other.

Knows configs, files and output streams; the other modules of this package measure.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from inference.api.llm import LLM
from inference.config import InferenceConfig, load_config
from inference.config.presets import find_preset, is_preset
from inference.context import build_context, check_device
from inference.errors import EXIT_GATE, EXIT_ROWS_FAILED, ConfigError, InferenceError
from inference.evaluate.answers import answer_examples, encode_reference
from inference.evaluate.examples import Example, have_references, read_examples
from inference.evaluate.gate import Gate, Verdict, check_gate
from inference.evaluate.report import name_of_other, report, verdict_of
from inference.evaluate.result import ALL, Evaluation, Sampling, read_evaluation
from inference.evaluate.scores import Metric, choose_metrics
from inference.generation.build import weight_format_of
from inference.generation.cache_size import longest_row, positions_needed
from inference.generation.model import GenerativeModel, make_encoder
from inference.generation.perplexity import positions_needed as score_positions
from inference.generation.text import EncodedPrompt, Encoder
from inference.jobs.figures import check_target
from inference.jobs.save_file import replace_file
from inference.models.source import ModelSource, resolve
from inference.terminal.output import load_progress, say
from inference.terminal.progress import ProgressLine, clock


def is_asked_for(config: InferenceConfig, values: Sequence[str]) -> bool:
    """Whether to compare answers with references: the rows have some, or the settings require them."""
    settings = config.evaluate.model_fields_set - {"compare_with"}
    return bool(settings) or have_references(values, config.evaluate.reference_key)


def evaluate_answers(config: InferenceConfig, values: Sequence[str]) -> int:
    """Answer prompts and compare the answers with their references. Scores go to standard output.

    Returns:
        The exit code: 0, 3 if rows failed, or 4 if a threshold was not met.
    """
    ready = check_evaluation(config, values)
    examples, metrics, sampling, other = ready.examples, ready.metrics, ready.sampling, ready.other
    evaluation = ready.model.evaluate(examples, metrics, sampling)
    if other is not None:
        evaluation.compare(other if isinstance(other, Evaluation) else other.evaluate(examples, metrics, sampling))
    verdicts = check_gate(evaluation, ready.gate)
    _write(config, evaluation, verdicts)
    _print(config, evaluation)
    for verdict in verdicts:
        say(f"{'kept' if verdict.passed else 'not kept'}: {verdict}")
    if not all(verdict.passed for verdict in verdicts):
        return EXIT_GATE
    if evaluation.num_failed:
        first = next(row for row in evaluation.rows if row.error)
        say(f"{evaluation.num_failed:,} of {len(evaluation.rows):,} rows failed, the first: {first.error}")
    return EXIT_ROWS_FAILED if evaluation.num_failed else 0


def check_evaluation(config: InferenceConfig, values: Sequence[str]) -> Ready:
    """Check everything that can be checked before the models run.

    Raises:
        InferenceError: the first mistake found.
    """
    settings = config.evaluate
    sampling = Sampling(settings.bootstrap_samples, settings.confidence, config.seed or 0)
    gate = Gate(settings.min_score, settings.max_score, settings.max_drop)
    gate.check_names()
    examples = read_examples(values, settings.reference_key, settings.slice_key)
    gate.check_names(sorted({name for example in examples for name in example.slices}))
    references = [example.references for example in examples]
    # Said once everything has been checked: a mistake gets its one line alone.
    notices: list[str] = []
    metrics = choose_metrics(settings.metrics, notices.append, references)
    # A threshold needs its metric, even if that metric was not requested.
    missing = gate.metric_names() - {metric.name for metric in metrics}
    metrics += choose_metrics(sorted(missing), notices.append)
    for target, flag in ((settings.result_file, "--result_file"), (settings.report_file, "--report_file")):
        if target:
            check_target(Path(target), flag)
    model, other = _Model.of(config), _other(config, metrics, sampling)
    if gate.max_drop and other is None:
        raise ConfigError("max_drop compares two models, and there is one", "give --compare_with")
    if isinstance(other, Evaluation):
        other.rows_of([(example.prompt.custom_id, example.references) for example in examples])
    for notice in notices:
        say(notice)
    return Ready(examples, metrics, sampling, gate, model, other)


@dataclass(frozen=True)
class _Model:
    """A model that has been found but not loaded."""

    source: ModelSource
    encoder: Encoder

    @classmethod
    def of(cls, config: InferenceConfig) -> _Model:
        check_device(config)
        source = resolve(config)
        return cls(source, make_encoder(source, source.tokenizer()))

    def evaluate(self, examples: Sequence[Example], metrics: Sequence[Metric], sampling: Sampling) -> Evaluation:
        """Load the model, measure it, and release it."""
        source, pairs = self.source, self.source.pairs()
        build_context(source.config)
        assert self.encoder.tokenizer is not None
        model = GenerativeModel(
            source,
            pairs,
            positions=self._positions(examples),
            row=longest_row(self._encoded(examples), source),
            progress=load_progress(pairs),
            say=say,
        )
        progress = _Progress(source.name, len(examples))
        with LLM(model, self.encoder.tokenizer) as llm:
            wanted = any(metric.name == "perplexity" for metric in metrics)
            rows = answer_examples(llm, examples, perplexity=wanted, progress=progress)
        progress.clear()
        return Evaluation(source.name, rows, metrics, sampling, {"weight_dtype": weight_format_of(source, pairs).value})

    def _positions(self, examples: Sequence[Example]) -> int:
        references = [encode_reference(self.encoder, row, example) for row, example in enumerate(examples)]
        longest = max((len(found.tokens) + len(found.source) for found in references if found), default=0)
        has_encoder = self.encoder.decoder_start is not None
        to_score = score_positions(self.source.config.engine.block_size, longest, has_encoder)
        return max(positions_needed(self._encoded(examples), self.source), to_score)

    def _encoded(self, examples: Sequence[Example]) -> list[EncodedPrompt]:
        encoded = []
        for row, example in enumerate(examples):
            try:
                encoded.append(self.encoder.encode(row, example.prompt))
            except InferenceError:
                continue  # the error is reported when the row is answered
        return encoded


@dataclass(frozen=True)
class Ready:
    """An evaluation that has been checked but not run; `other` is the model to compare with."""

    examples: Sequence[Example]
    metrics: Sequence[Metric]
    sampling: Sampling
    gate: Gate
    model: _Model
    other: _Model | Evaluation | None


class _Progress:
    """Shows the number of answered rows on stderr."""

    def __init__(self, model: str, total: int):
        self._line = ProgressLine(sys.stderr, sys.stderr.isatty())
        self._model, self._total = model, total
        self._begun = time.perf_counter()
        self.clear = self._line.clear

    def __call__(self, done: int) -> None:
        if self._line.is_due and done:
            seconds = time.perf_counter() - self._begun
            left = clock((self._total - done) * seconds / done)
            line = (
                f"{self._model}: {done:,} of {self._total:,} rows answered; {done / seconds:,.1f} a second; ETA {left}"
            )
            self._line.show(line, seconds)


def _other(config: InferenceConfig, metrics: Sequence[Metric], sampling: Sampling) -> _Model | Evaluation | None:
    """The model to compare with. Its config is used as written in its file: flags apply only to the first model."""
    name = config.evaluate.compare_with
    if name is None:
        return None
    if name.lower().endswith(".json"):
        return read_evaluation(Path(name), metrics, sampling)
    return _Model.of(config_of_other(name))


def config_of_other(name: str) -> InferenceConfig:
    """Load the config of the model to compare with: a YAML file or a preset."""
    return load_config(find_preset(name) if is_preset(name) and not Path(name).is_file() else name)


def _write(config: InferenceConfig, evaluation: Evaluation, verdicts: Sequence[Verdict]) -> None:
    settings = config.evaluate
    if settings.result_file:
        values = evaluation.as_dict()
        values["thresholds"] = [{"threshold": v.threshold, "value": v.value, "kept": v.passed} for v in verdicts]
        replace_file(Path(settings.result_file), json.dumps(values, indent=1, ensure_ascii=False).encode() + b"\n")
    if settings.report_file:
        replace_file(Path(settings.report_file), report(evaluation, verdicts).encode())


def _print(config: InferenceConfig, evaluation: Evaluation) -> None:
    """Print a line per slice and metric, or JSON without the answers."""
    if config.output.format == "json":
        values = evaluation.as_dict()
        del values["answers"]
        print(json.dumps(values, ensure_ascii=False))
        return
    other = evaluation.comparison
    for name in evaluation.slices:
        for metric, score in evaluation.scores[name].items():
            label = metric if name == ALL else f"{metric}@{name}"
            line = f"{label:<28} {score.value:9.4f}  [{score.low:.4f}, {score.high:.4f}]"
            if other:
                found = other.differences[name][metric]
                line += (
                    f"  {name_of_other(evaluation, other)} {other.scores[name][metric].value:.4f}"
                    f"  difference {found.value:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"
                    f" {verdict_of(metric, found.low, found.high)}"
                )
            print(line)
