"""Runs a pipeline on an engine without graphs: reads the input into parts, has workers answer each part, and joins the
figures.

Knows plans and files; `parts` has the functions that workers run, `cluster` the interface of an engine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from apache_beam.io.filesystems import FileSystems

from inference.beam.pipeline.build import Plan
from inference.beam.pipeline.cluster import Cluster
from inference.beam.pipeline.compare import CompareSteps, Figures, WriteComparison
from inference.beam.pipeline.counting import NAMESPACE
from inference.beam.pipeline.files import ALIVE, ANSWERS, OutputDirectory
from inference.beam.pipeline.parts import (
    ANSWERED,
    FINISHED,
    ROWS,
    SAID,
    AnswerPart,
    DropRepeated,
    PartFigures,
    Reading,
    ReadInput,
    Spilled,
)
from inference.beam.pipeline.record_files import JSON_LINES, PARQUET, SUFFIX
from inference.errors import ConfigError

# Parts per slot: enough that all slots finish at about the same time.
PARTS_PER_SLOT = 4
# Minimum and maximum bytes of input in a part. Many small parts leave the engine idle between them; if a large part
# fails, much work is repeated, and its records must fit into memory.
LEAST_BYTES, MOST_BYTES = 16 * 2**10, 4 * 2**20
COPIED_AT_ONCE = 2**20


def run_on(cluster: Cluster, plan: Plan, cpus: int) -> dict[str, Any]:
    """Run a pipeline, and return its figures in Beam's format.

    Args:
        cpus: number of threads for a model whose config does not set it.

    Raises:
        Exception: an error of a worker or of the engine.
    """
    output = plan.output
    assert output is not None
    output.put_part(f"{plan.run}{ALIVE}", b"")
    run = output.next_run
    with cluster.connected():
        parts = number_of_parts(_bytes_of(plan), cluster.slots)
        readings = _readings(plan, output)
        spilled = list(cluster.map(ReadInput(plan, parts), readings))
        if plan.preprocess is not None and plan.preprocess.deduplicates:
            said = [path for spill in spilled for path in spill.paths if path.rpartition("/")[2].startswith(SAID)]
            for spill in spilled:
                spill.paths = [path for path in spill.paths if path not in said]
            spilled += cluster.map(DropRepeated(plan, sorted(said), parts), range(parts))
        spills = sorted(path for spill in spilled for path in spill.paths)
        answering = AnswerPart(plan, spills, parts, run, cpus)
        found = list(cluster.map(answering, range(parts)))
    _join(output, "failed", JSON_LINES, 1, run, found)
    _join(output, "answers", plan.form, plan.shards, run, found)
    if plan.report is not None:
        _report(plan, [part.compared for part in found if part.compared is not None])
    return _figures(spilled, found)


def check_plan(plan: Plan, name: str) -> None:
    """Check that an engine can run a plan.

    Raises:
        ConfigError: it cannot.
    """
    if plan.output is None:
        raise ConfigError(f"pipeline.engine {name} writes files", "give --save_file a directory that all workers see")
    for step, model in plan.models.items():
        if model.handler.share_model_across_processes() or model.handler.model_copies() > 1:
            raise ConfigError(
                f"pipeline.steps.{step}: large_model and model_copies are for pipeline.engine beam",
                "leave them out: workers of a machine share the weights of a converted directory without them",
            )


def number_of_parts(num_bytes: int, slots: int) -> int:
    """Return the number of parts for an input of this size on this number of slots."""
    wanted = max(min(PARTS_PER_SLOT * slots, num_bytes // LEAST_BYTES), num_bytes // MOST_BYTES)
    return max(wanted, min(slots, num_bytes // (LEAST_BYTES // 16)), 1)


def _bytes_of(plan: Plan) -> int:
    """Return the size of the input."""
    files = [source.value for source in plan.sources if source.form is not None]
    found = FileSystems.match(files) if files else []
    prompts = sum(len(source.value) for source in plan.sources if source.form is None)
    return prompts + sum(file.size_in_bytes for match in found for file in match.metadata_list)


def _readings(plan: Plan, output: OutputDirectory) -> list[Reading]:
    values: list[tuple[str, Any]] = [(ROWS, source) for source in plan.sources]
    if plan.resume:
        values += [(FINISHED, path) for path in (*output.answers, *output.failures)]
        values += [(ANSWERED, path) for path in output.parts_of(ANSWERS)]
    return [Reading(number, kind, value) for number, (kind, value) in enumerate(values)]


def _join(output: OutputDirectory, kind: str, form: str, shards: int, run: int, found: Sequence[PartFigures]) -> None:
    """Join the pieces of one kind into this number of files."""
    pieces = sorted(part.pieces[kind] for part in found if kind in part.pieces)
    for number in range(min(shards, len(pieces))):
        name = f"{kind}-{run:02}-{number:05}-of-{min(shards, len(pieces)):05}{SUFFIX[form]}"
        own = [output.part(piece) for piece in pieces[number :: min(shards, len(pieces))]]
        with output.writing(name) as target:
            if form == PARQUET:
                _join_tables(own, target)
            else:
                _join_bytes(own, target)


def _join_bytes(paths: Sequence[str], target: Any) -> None:
    for path in paths:
        with FileSystems.open(path) as file:
            while data := file.read(COPIED_AT_ONCE):
                target.write(data)


def _join_tables(paths: Sequence[str], target: Any) -> None:
    import pyarrow.parquet

    writer = None
    for path in paths:
        with FileSystems.open(path) as file:
            table = pyarrow.parquet.read_table(file)
        writer = writer or pyarrow.parquet.ParquetWriter(target, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()


def _report(plan: Plan, figures: Sequence[Figures]) -> None:
    assert plan.report is not None
    whole = CompareSteps(plan.graph).merge_accumulators(figures)
    for _ in WriteComparison(plan.report, plan.graph).process(whole):
        pass


def _figures(spilled: Sequence[Spilled], found: Sequence[PartFigures]) -> dict[str, Any]:
    rows: Counter[str] = Counter(rows_read=0, rows_answered=0, rows_failed=0)
    for counts in (*(spill.rows for spill in spilled), *(part.rows for part in found)):
        rows.update(counts)
    steps: dict[str, Counter[str]] = {}
    for part in found:
        for step, counts in part.steps.items():
            steps.setdefault(step, Counter()).update(counts)
    counters = {NAMESPACE: dict(rows), **{name: dict(counts) for name, counts in steps.items()}}
    return {"counters": counters, "distributions": {}}
