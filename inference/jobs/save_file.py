"""The save file: writes only whole lines, whatever happens, and reads those of earlier runs.

Each line goes to the operating system in one write as soon as it is complete, so a killed process loses no line. It
reaches the disk with the next `commit`, and is counted only then. A partial line is cut off: at once if the disk fills
up in the middle of it, or by the next run if the process was killed there. The sidecar, `<file>.job`, records which job
wrote the file.

A failed row that is run again has two records until the job ends. Then a new file replaces it, with the newer record in
place of the older one. Knows nothing about models.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from inference.errors import InferenceError, InputError, reason_of
from inference.generation.record import DUPLICATE
from inference.jobs.feed import DoneRows
from inference.jobs.row_sets import BLOCK, NumberSet, NumberTable, fingerprint
from inference.terminal.signals import WRITING

Identity = Mapping[str, Any]
FORMAT = 1
# Row numbers are below this; no input has as many rows.
GREATEST_ROW = 1 << 62
# In bytes; no sidecar of ours is this long.
LARGEST_SIDECAR = 16 << 20


class Appender:
    """Appends whole lines to a file descriptor.

    Args:
        name: the name to use in errors.

    Attributes:
        num_lines: whole lines written.
        end: size of a regular file after the last line, bytes.
    """

    def __init__(self, fd: int, name: str):
        self.fd, self.name = fd, name
        self.is_regular = stat.S_ISREG(os.fstat(fd).st_mode)
        self.num_lines = 0
        self.end = os.fstat(fd).st_size

    def append(self, data: bytes) -> None:
        """Writes all of `data`, which ends with a newline.

        Raises:
            OSError: not all of it could be written; a regular file then holds whole lines only.
        """
        start = os.fstat(self.fd).st_size
        written = 0
        try:
            while written < len(data):
                written += os.write(self.fd, data[written:])
        except OSError:
            # Do not truncate if another process wrote in between.
            keep = data.rfind(b"\n", 0, written) + 1
            if self.is_regular and keep < written and os.fstat(self.fd).st_size == start + written:
                os.ftruncate(self.fd, start + keep)
            raise
        finally:
            whole = data.rfind(b"\n", 0, written) + 1
            self.num_lines += data.count(b"\n", 0, whole)
            self.end += whole


class SaveFile:
    """The file that records are written to. It is created, or its old content discarded, when the first record is
    written; a run that fails earlier does not touch it.

    Args:
        path: a regular file, or anything else that can be written.
        identity: what determines the text of the answers; None if the file cannot be resumed.
        overwrite: allow its old content to be discarded.
        resume: continue after its old content, which must have the same identity.
        retry: rerun the rows that failed in the old content.

    Raises:
        InputError: the file exists, cannot be written, or belongs to another job.
    """

    def __init__(
        self,
        path: Path,
        identity: Identity | None = None,
        overwrite: bool = False,
        resume: bool = False,
        retry: bool = False,
    ):
        self.path = path
        self._identity = dict(identity) if identity is not None else None
        self._overwrite, self._retry = overwrite, retry
        # Whether a row may have two records.
        self._is_untidy = False
        self._appender: Appender | None = None
        self._num_earlier = 0
        self.num_durable = 0
        """Rows on the disk, including those of earlier runs."""
        self.done = DoneRows()
        check_writable(path, overwrite or resume)
        if resume:
            self._take_up()

    @property
    def can_resume(self) -> bool:
        """Whether a later run could resume it."""
        return self._identity is not None and (not self.path.exists() or self.path.is_file())

    @property
    def num_written(self) -> int:
        """Rows in the file, including those of earlier runs."""
        return self._num_earlier + (self._appender.num_lines if self._appender else 0)

    def append(self, lines: list[str]) -> None:
        """Writes lines; from then on they survive the end of this process.

        Raises:
            InferenceError: the disk is full, or a pipe was closed; no partial line is left.
        """
        with WRITING:
            if self._appender is None:
                self._appender = self._start()
            try:
                self._appender.append("".join(f"{line}\n" for line in lines).encode("utf-8", "replace"))
            except OSError as error:
                raise self._failure(error) from error

    def commit(self) -> None:
        """Flushes what was written to the disk, and counts it."""
        # Rows that arrive during the fsync belong to the next commit.
        written, appender = self.num_written, self._appender
        if appender is not None and appender.is_regular:
            self._check_in_place(appender)
        if written > self.num_durable and appender is not None:
            try:
                if appender.is_regular:
                    os.fsync(appender.fd)
            except OSError as error:
                raise self._failure(error) from error
            self.num_durable = written

    def _check_in_place(self, appender: Appender) -> None:
        """Raises an error if the open file is no longer the one at the path, or has lost bytes."""
        state = os.fstat(appender.fd)
        with contextlib.suppress(OSError):
            if os.path.samestat(state, self.path.stat()):
                if state.st_size >= appender.end:
                    return
                raise self._lost(f"was cut to {state.st_size:,} of {appender.end:,} bytes", "the others are lost")
        # Linux reports the current path of an open file.
        link = Path(f"/proc/self/fd/{appender.fd}")
        place = link.readlink() if link.is_symlink() else None
        if state.st_nlink and place is not None:
            raise self._lost("was renamed", f"they are in {place}")
        rescued = self._rescue(appender)
        raise self._lost("was removed", f"they are in {rescued}" if rescued else "they are lost")

    def _lost(self, what: str, where: str) -> InferenceError:
        records = f"{self.num_written:,} records had been written to it"
        return InferenceError(f"the save file {self.path} {what} while the job ran: {records}, {where}")

    def _rescue(self, appender: Appender) -> Path | None:
        """Copies the content of a removed file to a new file beside it; returns None if that fails."""
        place = self.path.with_name(f"{self.path.name}.rescued")
        try:
            with place.open("xb") as file, open(os.dup(appender.fd), "rb") as lost:  # noqa: PTH123  # a descriptor
                lost.seek(0)
                shutil.copyfileobj(lost, file)
        except OSError:
            return None
        return place

    def tidy(self, ordered: bool) -> None:
        """Keeps one record of each row if any row was rerun, and sorts the records by row if `ordered`.

        The file is replaced atomically: the old one stays in place until the new one is complete.

        Raises:
            InferenceError: the disk has no space for the new file.
        """
        if self._appender is None or not self._appender.is_regular or self._identity is None:
            return
        # The rows of a single run are already in order.
        if self._is_untidy or (ordered and self._num_earlier):
            self.commit()
            _tidy(self.path.resolve(), ordered)

    def close(self) -> None:
        if self._appender is not None:
            # A failed write has already been reported.
            with contextlib.suppress(OSError):
                os.close(self._appender.fd)
            self._num_earlier = self.num_written
            self._appender = None

    def _failure(self, error: OSError) -> InferenceError:
        return InferenceError(f"{self.path} cannot be written: {error.strerror}")

    def _start(self) -> Appender:
        try:
            fd = os.open(self.path, _access(self.path) | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise InputError(f"the save file {self.path} cannot be written: {error.strerror}") from error
        try:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                self._begin(fd)
            return Appender(fd, str(self.path))
        except BaseException:
            os.close(fd)
            raise

    def _begin(self, fd: int) -> None:
        self._lock(fd)
        if not self._overwrite and os.fstat(fd).st_size:
            raise _exists(self.path)
        # In this order, so that old answers never stand beside the new sidecar.
        os.ftruncate(fd, 0)
        if self._identity is not None:
            _write_sidecar(self.path, self._identity)
        sync_directory(self.path.parent)

    def _lock(self, fd: int) -> None:
        """Locks the file: two runs that write the same file would both answer every row."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A run that has just ended may have replaced the file.
            if not os.path.samestat(os.fstat(fd), self.path.stat()):
                raise BlockingIOError
            # A killed run may have left its temporary file.
            _temporary(self.path.resolve()).unlink(missing_ok=True)
        except BlockingIOError:
            raise InputError(f"another run is writing {self.path}", "wait for it, or give another name") from None
        except OSError:
            # The file system has no locks, so other runs cannot be detected.
            return

    def _take_up(self) -> None:
        """Reads the existing records, and cuts off a partial line at the end."""
        if self._identity is None:
            raise InputError("--resume needs a save file of records", "give --output_format json and a --save_file")
        if not self.path.exists() or not self.path.stat().st_size:
            # There is nothing to resume: start a new file.
            self._overwrite = True
            return
        if not self.path.is_file():
            raise InputError(f"--resume: {self.path} is not a regular file, so it cannot be resumed")
        fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        try:
            self._lock(fd)
            _check_same(self.path, self._identity)
            self.done, whole, twice = _read_records(self.path, self._retry)
            self._is_untidy = twice
            if whole < os.fstat(fd).st_size:
                os.ftruncate(fd, whole)
            os.fsync(fd)
        except BaseException:
            os.close(fd)
            raise
        self._num_earlier = self.num_durable = len(self.done.numbers)
        self._appender = Appender(fd, str(self.path))


def sidecar_of(path: Path) -> Path:
    """The path of the sidecar, the file beside a save file that records which job wrote it."""
    return path.with_name(path.name + ".job")


def _access(path: Path) -> int:
    """The open mode. A regular file is also opened for reading, so that it can be copied if removed; a pipe is not."""
    return os.O_RDWR if not path.exists() or path.is_file() else os.O_WRONLY


def check_writable(path: Path, overwrite: bool) -> None:
    """Rejects a file that exists or cannot be created, before a model is loaded.

    Raises:
        InputError: the file cannot be used; the hint says what to do instead.
    """
    if path.is_dir():
        raise InputError(f"the save file {path} is a directory", "give the name of a file")
    if path.exists() and path.stat().st_size and path.is_file() and not overwrite:
        raise _exists(path)
    parent = path.parent
    if not parent.is_dir():
        raise InputError(f"the directory of the save file, {parent}, does not exist", "make it first")
    if not os.access(path if path.exists() else parent, os.W_OK):
        raise InputError(f"the save file {path} cannot be written: permission denied")


def replace_file(path: Path, data: bytes) -> None:
    """Writes a file atomically; a pipe or a device is written to, not replaced.

    Raises:
        InferenceError: the file cannot be written.
    """
    # /dev/stdout may be a regular file that others also write to.
    if not path.exists() or (path.is_file() and Path("/dev") not in path.absolute().parents):
        _replace(path.resolve(), iter([data]))
        return
    try:
        with path.open("ab", buffering=0) as stream:
            stream.write(data)
    except OSError as error:
        raise InferenceError(f"{path} cannot be written: {error.strerror}") from error


def _replace(path: Path, parts: Iterator[bytes], mode: int | None = None) -> None:
    temporary = _temporary(path)
    try:
        with temporary.open("wb") as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise InferenceError(f"{path} cannot be written: {error.strerror}") from error
    sync_directory(path.parent)


def _temporary(path: Path) -> Path:
    """The name of the temporary file. It is always the same, so the next run removes what a killed one left."""
    return path.with_name(f".{path.name}.tmp")


def sync_directory(directory: Path) -> None:
    """Flushes the entries of a directory to the disk; not every file system supports that."""
    with contextlib.suppress(OSError):
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _exists(path: Path) -> InputError:
    more = ", or --resume to continue it" if sidecar_of(path).is_file() else ""
    return InputError(f"the save file {path} exists", f"give another name, or --overwrite{more}")


def _write_sidecar(path: Path, identity: Identity) -> None:
    text = json.dumps({"format": FORMAT, **identity}, indent=1, ensure_ascii=False, sort_keys=True)
    replace_file(sidecar_of(path), text.encode("utf-8", "replace") + b"\n")


def _check_same(path: Path, identity: Identity) -> None:
    """Refuses to resume if the answers would differ from those of a single run.

    Raises:
        InputError: something differs; the message names it.
    """
    sidecar = sidecar_of(path)
    again = "--overwrite starts again"
    try:
        with sidecar.open("rb") as file:
            old = json.loads(file.read(LARGEST_SIDECAR))
        if not isinstance(old, dict):
            raise ValueError("it holds no object")
    except FileNotFoundError:
        raise InputError(f"--resume: {path} cannot be resumed without {sidecar}, which is missing", again) from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"--resume: {sidecar} cannot be read ({reason_of(error)})", again) from error
    # A round trip through JSON turns tuples into lists.
    new = json.loads(json.dumps({"format": FORMAT, **identity}))
    for key in sorted({*old, *new}):
        # Files may have been added at the end; a changed row is detected when it is read.
        is_added_input = key.startswith("predict_data.") and key not in old
        if not is_added_input and old.get(key) != new.get(key):
            was, now = (json.dumps(side.get(key), ensure_ascii=False) for side in (old, new))
            raise InputError(
                f"--resume: {path} was started with {key} {was}, but it is {now} now", f"give the same; {again}"
            )


def _read_records(path: Path, retry: bool) -> tuple[DoneRows, int, bool]:
    """Returns the rows of a save file, the length of its whole lines in bytes, and whether any row has, or will have,
    two records.

    Args:
        retry: do not count failed rows as done.

    Raises:
        InputError: a line before the last is not a record, or a row that had not failed has a second record.
    """
    done = DoneRows()
    failed, answered, whole, twice = NumberSet(), NumberSet(), 0, False
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            record = _record(line)
            if record is None:
                if file.read(1):
                    hint = "repair that line, or start again with --overwrite"
                    raise InputError(f"--resume: {path}:{number} is not a record of this job", hint)
                break
            row, error = record["row"], record.get("error")
            if row in answered:
                raise InputError(f"--resume: {path}:{number}: row {row} is there twice", "remove one of them")
            again = row in failed
            (answered if error is None else failed).add(row)
            twice = twice or again or (retry and error is not None)
            if error is None or not retry:
                done.numbers.add(row)
                done.failed += (error is not None) - again
                if not (isinstance(error, dict) and error.get("type") == DUPLICATE):
                    done.names.add(str(record.get("custom_id")))
                # A failed row may have been corrected in the input.
                if error is None:
                    done.fingerprints[row] = fingerprint(str(record.get("input_digest") or record.get("custom_id")))
            whole += len(line)
    return done, whole, twice


def _tidy(path: Path, ordered: bool) -> None:
    """Rewrites a save file: keeps the newest record of each row, sorted or in the place of the oldest."""
    newest = NumberTable(-1)  # byte offset of the newest record of each row
    with path.open("rb") as file, path.open("rb") as copied:
        place, last, is_tidy = 0, -1, True
        for line in file:
            row = json.loads(line)["row"]
            is_tidy = is_tidy and newest[row] < 0 and not (ordered and row < last)
            newest[row], last = place, row
            place += len(line)
        if is_tidy:
            return

        def record(row: int) -> bytes:
            copied.seek(newest[row])
            newest[row] = -1
            return copied.readline()

        file.seek(0)
        in_order = (row for first in newest.numbers() for row in range(first, first + BLOCK))
        rows = in_order if ordered else (json.loads(line)["row"] for line in file)
        _replace(path, (record(row) for row in rows if newest[row] >= 0), stat.S_IMODE(os.fstat(file.fileno()).st_mode))


def _record(line: bytes) -> dict[str, Any] | None:
    """The record on a line; None if the line is partial or is not a record."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    valid = isinstance(record, dict) and type(record.get("row")) is int and 0 <= record["row"] < GREATEST_ROW
    return record if valid else None
