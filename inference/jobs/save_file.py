"""The save file: whole lines and no half ones, whatever happens, and what an earlier run left in it.

A line reaches the kernel in one piece as soon as it is complete, so killing the process loses no line; it reaches the
disk with the next `commit`, and only then is it counted. What belongs to a line is cut off again when the disk is full
in the middle of it, or by the next run if the process was killed there. Beside the file, `<file>.job` says what made
it.

A row that failed and is run again has two records until its job ends: then the file is replaced by one in which the
newer record stands in the older one's place. Knows nothing about models.
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

from inference.errors import InferenceError, InputError
from inference.generation.record import DUPLICATE
from inference.jobs.feed import DoneRows
from inference.jobs.row_sets import BLOCK, NumberSet, NumberTable, fingerprint
from inference.terminal.signals import WRITING

Identity = Mapping[str, Any]
FORMAT = 1
# More rows than any input has.
GREATEST_ROW = 1 << 62
# No sidecar of ours is this long, bytes.
LARGEST_SIDECAR = 16 << 20


class Appender:
    """Appends whole lines to a file descriptor.

    Args:
        name: what to call it in errors.

    Attributes:
        num_lines: whole lines that were written.
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
            OSError: not all could be written; a regular file has whole lines of it then, and no half one.
        """
        start = os.fstat(self.fd).st_size
        written = 0
        try:
            while written < len(data):
                written += os.write(self.fd, data[written:])
        except OSError:
            # Not if another process wrote in between.
            keep = data.rfind(b"\n", 0, written) + 1
            if self.is_regular and keep < written and os.fstat(self.fd).st_size == start + written:
                os.ftruncate(self.fd, start + keep)
            raise
        finally:
            whole = data.rfind(b"\n", 0, written) + 1
            self.num_lines += data.count(b"\n", 0, whole)
            self.end += whole


class SaveFile:
    """The file that records go to. It is made, or its old content lost, when there is a first record for it, and not by
    a run that fails before.

    Args:
        path: a regular file, or anything else that can be written.
        identity: what decides the texts of the answers; None where the file cannot be gone on with.
        overwrite: its old content may go.
        resume: go on after its old content, which must be of the same identity.
        retry: run the rows of the old content again that failed.

    Raises:
        InputError: the file exists, cannot be written, or is another job's.
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
        # Whether a row may be there twice.
        self._is_untidy = False
        self._appender: Appender | None = None
        self._num_earlier = 0
        self.num_durable = 0
        """Rows on the disk, those of earlier runs included."""
        self.done = DoneRows()
        check_writable(path, overwrite or resume)
        if resume:
            self._take_up()

    @property
    def can_resume(self) -> bool:
        """Whether a later run could go on with it."""
        return self._identity is not None and (not self.path.exists() or self.path.is_file())

    @property
    def num_written(self) -> int:
        """Rows in the file, those of earlier runs included."""
        return self._num_earlier + (self._appender.num_lines if self._appender else 0)

    def append(self, lines: list[str]) -> None:
        """Writes lines; they survive this process from here on.

        Raises:
            InferenceError: the disk is full, or the reader of a pipe has gone; no half line is left.
        """
        with WRITING:
            if self._appender is None:
                self._appender = self._start()
            try:
                self._appender.append("".join(f"{line}\n" for line in lines).encode("utf-8", "replace"))
            except OSError as error:
                raise self._failure(error) from error

    def commit(self) -> None:
        """Brings what was written to the disk, and counts it."""
        # Rows that come while the disk is at work belong to the next time.
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
        # Linux tells where an open file is now.
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
        """Copies what a removed file held to a new one beside it; None if that cannot be done."""
        place = self.path.with_name(f"{self.path.name}.rescued")
        try:
            with place.open("xb") as file, open(os.dup(appender.fd), "rb") as lost:  # noqa: PTH123  # a descriptor
                lost.seek(0)
                shutil.copyfileobj(lost, file)
        except OSError:
            return None
        return place

    def tidy(self, ordered: bool) -> None:
        """Leaves each row there once, if any was run again, and all in their order if they are to be.

        The file is replaced as a whole: whatever happens meanwhile, the old one is there until the new one is.

        Raises:
            InferenceError: there is no room for the new one.
        """
        if self._appender is None or not self._appender.is_regular or self._identity is None:
            return
        # Rows of one run are in order already.
        if self._is_untidy or (ordered and self._num_earlier):
            self.commit()
            _tidy(self.path.resolve(), ordered)

    def close(self) -> None:
        if self._appender is not None:
            # What could not be written has been reported.
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
        # In this order: an old answer is never beside the new sidecar.
        os.ftruncate(fd, 0)
        if self._identity is not None:
            _write_sidecar(self.path, self._identity)
        sync_directory(self.path.parent)

    def _lock(self, fd: int) -> None:
        """Two runs that write the same file would both do every row."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A run that ended meanwhile may have put another file in its place.
            if not os.path.samestat(os.fstat(fd), self.path.stat()):
                raise BlockingIOError
            # What a run that was killed left.
            _temporary(self.path.resolve()).unlink(missing_ok=True)
        except BlockingIOError:
            raise InputError(f"another run is writing {self.path}", "wait for it, or give another name") from None
        except OSError:
            # A file system without locks: nothing can be said.
            return

    def _take_up(self) -> None:
        """Finds out what is there, and cuts off half a line at the end."""
        if self._identity is None:
            raise InputError("--resume goes on with records", "give --output_format json and a --save_file")
        if not self.path.exists() or not self.path.stat().st_size:
            # There is nothing to go on with: it is begun.
            self._overwrite = True
            return
        if not self.path.is_file():
            raise InputError(f"--resume: {self.path} is no file that could be gone on with")
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
    """The file beside a save file that says what made it."""
    return path.with_name(path.name + ".job")


def _access(path: Path) -> int:
    """A regular file is opened for reading as well, so that it can be copied if it is removed; a pipe is not."""
    return os.O_RDWR if not path.exists() or path.is_file() else os.O_WRONLY


def check_writable(path: Path, overwrite: bool) -> None:
    """Refuses a file that exists or cannot be made, before a model is loaded.

    Raises:
        InputError: with what to do instead.
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
    """Writes a file so that it is there as a whole or not at all; a pipe or a device is written to and stays one.

    Raises:
        InferenceError: it cannot be written.
    """
    # /dev/stdout may be a regular file, which others write to as well.
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
    """Always the same name: what a killed process left of it goes with the next one."""
    return path.with_name(f".{path.name}.tmp")


def sync_directory(directory: Path) -> None:
    """Brings the names in a directory to the disk; not every file system does that."""
    with contextlib.suppress(OSError):
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _exists(path: Path) -> InputError:
    more = ", or --resume to go on with it" if sidecar_of(path).is_file() else ""
    return InputError(f"the save file {path} exists", f"give another name, or --overwrite{more}")


def _write_sidecar(path: Path, identity: Identity) -> None:
    text = json.dumps({"format": FORMAT, **identity}, indent=1, ensure_ascii=False, sort_keys=True)
    replace_file(sidecar_of(path), text.encode("utf-8", "replace") + b"\n")


def _check_same(path: Path, identity: Identity) -> None:
    """Refuses to go on where the answers would not be those of one run.

    Raises:
        InputError: with what differs.
    """
    sidecar = sidecar_of(path)
    again = "--overwrite begins anew"
    try:
        with sidecar.open("rb") as file:
            old = json.loads(file.read(LARGEST_SIDECAR))
        if not isinstance(old, dict):
            raise ValueError("it holds no object")
    except FileNotFoundError:
        raise InputError(f"--resume: there is no {sidecar}, so nobody can tell what made {path}", again) from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"--resume: {sidecar} cannot be read ({error})", again) from error
    # Through JSON and back, so that a tuple is a list.
    new = json.loads(json.dumps({"format": FORMAT, **identity}))
    for key in sorted({*old, *new}):
        # Files may have been added at the end; a row that is another now is noticed when its turn comes.
        is_added_input = key.startswith("predict_data.") and key not in old
        if not is_added_input and old.get(key) != new.get(key):
            was, now = (json.dumps(side.get(key), ensure_ascii=False) for side in (old, new))
            raise InputError(f"--resume: {path} was begun with {key} {was}, it is {now} now", f"give the same; {again}")


def _read_records(path: Path, retry: bool) -> tuple[DoneRows, int, bool]:
    """What a save file holds; how long its whole lines are, bytes; and whether a row is, or will be, there twice.

    Args:
        retry: rows that failed are not done.

    Raises:
        InputError: a line before the last is no record, or a row is there again that had not failed.
    """
    done = DoneRows()
    failed, answered, whole, twice = NumberSet(), NumberSet(), 0, False
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            record = _record(line)
            if record is None:
                if file.read(1):
                    hint = "repair that line, or begin anew with --overwrite"
                    raise InputError(f"--resume: {path}:{number} is no record of this job", hint)
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
                # A row that failed may have been mended in its place.
                if error is None:
                    done.fingerprints[row] = fingerprint(str(record.get("input_digest") or record.get("custom_id")))
            whole += len(line)
    return done, whole, twice


def _tidy(path: Path, ordered: bool) -> None:
    """Rewrites a save file of whole lines: of each row the newest record, in the place of the oldest or in order."""
    newest = NumberTable(-1)  # where the record of each row begins
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
    """The record on a line; None for half of one."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    valid = isinstance(record, dict) and type(record.get("row")) is int and 0 <= record["row"] < GREATEST_ROW
    return record if valid else None
