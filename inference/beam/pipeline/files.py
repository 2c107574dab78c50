"""The files of a pipeline, in any of Beam's file systems: input patterns and the output directory.

Knows paths and rows; knows nothing about models.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any, cast

from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from inference.beam.pipeline.record_files import PARQUET, SUFFIX, unescaped
from inference.beam.pipeline.row_state import RowState, bad_row
from inference.config.input_formats import FORMATS, SUFFIXES, format_of_name
from inference.errors import InferenceError, InputError
from inference.inputs import tables
from inference.inputs.files import STDIN, ByteFile, is_blank
from inference.inputs.prompts import (
    Prompt,
    RowError,
    check_text,
    name_of_row,
    parse_object,
    prompt_from_mapping,
    prompt_of,
)
from inference.inputs.rows import decode_line, table_parser

# Suffixes of the files in `.parts`. Each name ends in the number of rows that the file represents. Files for rows that
# were read, or done by earlier runs, are empty.
ANSWERS, FAILURES, READ, DONE = ".jsonl", ".failed", ".read", ".done"
# Files of engines without graphs: items on their way to their parts, records to join, and the mark of an active run,
# which its workers check before they write output.
SPILL, PIECE, ALIVE = ".spill", ".piece", ".alive"
# Temporary directories of Beam's sinks.
TEMPORARY = "beam-temp-*"


@dataclass(frozen=True)
class Source:
    """A file of rows, or a prompt from the command line.

    Args:
        form: format of the file; None for a prompt.
        number: position of a prompt among the prompts.
    """

    value: str
    form: str | None
    number: int = 0


@dataclass(frozen=True)
class Columns:
    """The columns of a table that hold prompts and row names; and the keys of JSON rows that are not settings."""

    prompt: str = "prompt"
    name: str = "custom_id"
    fields: frozenset[str] = frozenset()


def find_sources(values: Sequence[str], given_format: str | None) -> list[Source]:
    """Find the files that patterns match, sorted by name, and the prompts.

    Raises:
        InputError: a pattern matches nothing, or a file has an unknown format.
    """
    sources: list[Source] = []
    prompts = 0
    for value in values:
        if _is_pattern(value):
            for path in matching(value):
                sources.append(Source(path, _format_of(path, given_format)))
        else:
            sources.append(Source(check_text(value, "--predict_data"), None, prompts))
            prompts += 1
    if not sources:
        raise InputError("there is no row", "give --predict_data a text, or a pattern of files such as 'in/*.jsonl'")
    return list(dict.fromkeys(sources))


def _is_pattern(value: str) -> bool:
    if value == STDIN:
        raise InputError("a pipeline cannot read standard input", "give files, or --run_mode predict")
    return value.lower().endswith(SUFFIXES) or ("/" in value and not any(char.isspace() for char in value))


def _format_of(path: str, given: str | None) -> str:
    form = given or format_of_name(path)
    if form is None:
        raise InputError(f"--predict_data: {path} is none of {', '.join(SUFFIXES)}", "say what it is: --input_format")
    return form


def matching(pattern: str) -> list[str]:
    """The files that a pattern matches, sorted by name.

    Raises:
        InputError: it matches none, or the file system is not accessible.
    """
    try:
        found = [file.path for file in FileSystems.match([pattern])[0].metadata_list]
    except (BeamIOError, ValueError) as error:
        raise InputError(f"--predict_data: {pattern} cannot be listed: {error}") from error
    if not found:
        raise InputError(f"--predict_data: {pattern} matches no file", "check the directory and the suffix")
    return sorted(found)


def open_file(path: str) -> IO[bytes]:
    """Open a file, without decompression."""
    return cast(IO[bytes], FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED))


def read_rows(source: Source, columns: Columns) -> Iterator[RowState]:
    """All rows of a source; an invalid row holds its error.

    Raises:
        InputError: the file cannot be read to its end.
    """
    if source.form is None:
        prompt = Prompt(str(source.number), f"prompt {source.number + 1}", text=source.value)
        yield RowState(prompt.custom_id, None, source.number, None, prompt)
        return
    file = ByteFile(source.value, lambda: open_file(source.value))
    if FORMATS[source.form].is_table:
        read = tables.READERS[source.form]
        for row, (line, cell, name) in enumerate(read(file, columns.prompt, columns.name)):
            yield _table_row(RowState(f"{source.value}:{line}", source.value, row, line), cell, name)
        return
    row = 0
    for line, data in file.lines():
        if not is_blank(data):
            state = RowState(f"{source.value}:{line}", source.value, row, line)
            yield _text_row(state, data) if source.form == "txt" else _json_row(state, data, columns.fields)
            row += 1


def _table_row(state: RowState, cell: Any, name: Any) -> RowState:
    where = f"{state.file}:{state.line}"
    try:
        prompt = table_parser(cell, name)(where, state.key)
    except RowError as error:
        return bad_row(_with(state, key=error.custom_id, data=str(cell)), error)
    return _with(state, key=prompt.custom_id, prompt=prompt)


def _text_row(state: RowState, data: bytes) -> RowState:
    where = f"{state.file}:{state.line}"
    try:
        return _with(state, prompt=prompt_of(decode_line(data, state.line or 0, where), where, state.key))
    except RowError as error:
        return bad_row(_with(state, data=data.decode("utf-8", "replace").rstrip()), error)


def _json_row(state: RowState, data: bytes, fields: frozenset[str]) -> RowState:
    where = f"{state.file}:{state.line}"
    try:
        values = parse_object(decode_line(data, state.line or 0, where), where)
        state = _with(state, key=name_of_row(values, where, state.key), data=values)
    except RowError as error:
        return bad_row(_with(state, data=data.decode("utf-8", "replace").rstrip()), error)
    if not values.keys() & {"prompt", "messages", "body"}:
        return state
    asked = {key: value for key, value in values.items() if key not in fields}
    try:
        return _with(state, prompt=prompt_from_mapping(asked, where, state.key))
    except RowError as error:
        return bad_row(state, error)


def _with(state: RowState, **changes: Any) -> RowState:
    return replace(state, **{name: value for name, value in changes.items() if value is not None})


@dataclass(frozen=True)
class OutputDirectory:
    """The output of a pipeline: `answers-RUN-*`, `failed-RUN-*`, `job.json`, `metrics.json`; `.parts` while it runs.

    Each finished run has a number, so that files of different runs never collide.
    """

    path: str

    def join(self, *names: str) -> str:
        return str(FileSystems.join(self.path, *names))

    def match(self, *names: str) -> list[str]:
        """Files in the directory that match a pattern.

        Raises:
            InputError: the file system is not accessible.
        """
        try:
            return sorted(file.path for file in FileSystems.match([self.join(*names)])[0].metadata_list)
        except (BeamIOError, ValueError) as error:
            raise InputError(f"the output directory {self.path} cannot be listed: {error}") from error

    @property
    def parts(self) -> str:
        """The directory for the work of an unfinished run."""
        return self.join(".parts")

    @property
    def answers(self) -> list[str]:
        return self.match("answers-*")

    @property
    def failures(self) -> list[str]:
        return self.match("failed-*")

    def part(self, name: str) -> str:
        """The path of a file in `.parts`."""
        return self.join(".parts", name)

    def parts_of(self, kind: str) -> list[str]:
        """Files in `.parts` of one kind."""
        return self.match(".parts", f"*{kind}")

    def parts_by_kind(self, *kinds: str) -> list[list[str]]:
        """Files in `.parts` of each kind."""
        paths = self.match(".parts", "*")
        return [[path for path in paths if path.endswith(kind)] for kind in kinds]

    def count(self, kind: str) -> int:
        """Number of rows in the files of one kind in `.parts`; each answer of a step counts."""
        return rows_in(self.parts_of(kind))

    def put(self, name: str, data: bytes) -> None:
        """Write a file of output atomically. If two processes do so at the same time, one of the files remains."""
        with self.writing(name) as file:
            file.write(data)

    def put_part(self, name: str, data: bytes) -> None:
        """Write a file in `.parts` in the same way."""
        self.put(f".parts/{name}", data)

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """Open a file of output for writing; it becomes visible when it is complete.

        Raises:
            InferenceError: it cannot be written.
        """
        with _replacing(self.part(f"{uuid.uuid4().hex}.tmp"), self.join(*name.split("/"))) as file:
            yield file

    def note(self, kind: str, path: str, rows: int) -> None:
        """Record the number of rows in a file."""
        digest = blake2b(path.encode("utf-8", "replace"), digest_size=16).hexdigest()
        write_file(self.part(f"{digest}-{rows}{kind}"), b"")

    def tidy(self) -> None:
        """Remove the leftovers of an interrupted run, except its answers: its progress files, and files that Beam's
        sinks had not moved into place.
        """
        kinds = (FAILURES, READ, DONE, SPILL, PIECE, ALIVE)
        self.remove([path for paths in self.parts_by_kind(*kinds) for path in paths])
        if "://" in self.path:
            self.remove(self.match(TEMPORARY, "*"))
        else:
            for path in Path(self.path).glob(TEMPORARY):
                shutil.rmtree(path, ignore_errors=True)

    @property
    def next_run(self) -> int:
        numbers = [int(path.rpartition("/")[2].split("-")[1]) for path in (*self.answers, *self.failures)]
        return max(numbers, default=-1) + 1

    def make(self) -> None:
        """Create the directory.

        Raises:
            InputError: it cannot be created.
        """
        self._make(self.path)

    def make_parts(self) -> None:
        """Create the directory `.parts`."""
        self._make(self.parts)

    @staticmethod
    def _make(path: str) -> None:
        try:
            if not FileSystems.exists(path):
                FileSystems.mkdirs(path)
        except (BeamIOError, OSError, ValueError) as error:
            raise InputError(f"the output directory {path} cannot be created: {error}") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs on this machine out, if the directory is on this machine.

        Raises:
            InputError: another run is writing into the directory.
        """
        if "://" in self.path:
            yield
            return
        directory = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"another run is writing into {self.path}", "wait for it, or give another name"
                ) from None
            except OSError:
                pass  # the file system has no locks
            yield
        finally:
            os.close(directory)

    def clear(self) -> None:
        """Remove the output of all runs."""
        self.remove([*self.answers, *self.failures, *self.match("*.json"), *self.match(".parts", "*")])

    def remove(self, paths: Sequence[str]) -> None:
        if paths:
            FileSystems.delete(list(paths))

    def remove_parts(self) -> None:
        # An object store has no directories: once the files are deleted, nothing is left.
        self.remove(self.match(".parts", "*"))
        if FileSystems.exists(self.parts):
            FileSystems.delete([self.parts])

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        write_file(self.join(name), json.dumps(values, indent=1, ensure_ascii=False).encode("utf-8", "replace") + b"\n")

    def read_json(self, name: str) -> Any:
        """The contents of a JSON file; None if it does not exist."""
        path = self.join(name)
        if not FileSystems.exists(path):
            return None
        with open_file(path) as file:
            return json.loads(file.read())


def rows_in(parts: Iterable[str]) -> int:
    """Number of rows that files in `.parts` represent, from their names."""
    return sum(int(path.rpartition("-")[2].partition(".")[0]) for path in parts)


def write_file(path: str, data: bytes) -> None:
    """Write a file atomically.

    Raises:
        InferenceError: it cannot be written.
    """
    with _replacing(f"{path}.tmp", path) as file:
        file.write(data)


@contextmanager
def _replacing(temporary: str, path: str) -> Iterator[IO[bytes]]:
    """Open a temporary file that then replaces the file at `path`."""
    try:
        with FileSystems.create(temporary, compression_type=CompressionTypes.UNCOMPRESSED) as file:
            yield file
        if "://" not in path:
            Path(temporary).replace(path)
            return
        if FileSystems.exists(path):
            FileSystems.delete([path])
        FileSystems.rename([temporary], [path])
    except (BeamIOError, OSError) as error:
        raise InferenceError(f"{path} cannot be written: {error}") from error


def names_in(path: str) -> Iterator[str]:
    """Yield the names of the rows in a file of answers or failures.

    Raises:
        InputError: a line is not a record of a pipeline.
    """
    if path.endswith(SUFFIX[PARQUET]):
        import pyarrow.parquet

        with open_file(path) as stored:
            table = pyarrow.parquet.ParquetFile(stored)
            # pyarrow 19 raises on a file without rows.
            for batch in table.iter_batches(columns=["custom_id"]) if table.metadata.num_rows else ():
                yield from batch.column("custom_id").to_pylist()
        return
    for number, line in ByteFile(path, lambda: open_file(path)).lines():
        try:
            text = line.decode()
            yield unescaped(text.partition("\t")[0]) if path.endswith(".txt") else str(json.loads(text)["custom_id"])
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"{path}:{number} is not a record of a pipeline", "repair that line, or give --overwrite"
            ) from None
