"""The save file: whole lines and no half ones, whatever happens, and what an earlier run left in it.

A line reaches the kernel in one piece as soon as it is complete, so killing the process loses no line; it reaches the
disk with the next `commit`, and only then is it counted. What belongs to a line is cut off again when the disk is full
in the middle of it, or by the next run if the process was killed there. Beside the file, `<file>.job` says what made
it. Knows nothing about models.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inference.errors import InferenceError, InputError
from inference.interrupt import WRITING
from inference.jobs.feed import DUPLICATE, DoneRows
from inference.jobs.seen import NameSet, NumberSet

Identity = Mapping[str, Any]
FORMAT = 1


class Appender:
    """Appends whole lines to a file descriptor.

    Args:
        name: what to call it in errors.

    Attributes:
        num_lines: whole lines that were written.
    """

    def __init__(self, fd: int, name: str):
        self.fd, self.name = fd, name
        self.is_regular = stat.S_ISREG(os.fstat(fd).st_mode)
        self.num_lines = 0

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
            self.num_lines += data.count(b"\n", 0, written)


class SaveFile:
    """The file that records go to. It is made, or its old content lost, when there is a first record for it, and not by
    a run that fails before.

    Args:
        path: a regular file, or anything else that can be written.
        identity: what decides the texts of the answers; None where the file cannot be gone on with.
        overwrite: its old content may go.
        resume: go on after its old content, which must be of the same identity.

    Raises:
        InputError: the file exists, cannot be written, or is another job's.
    """

    def __init__(self, path: Path, identity: Identity | None = None, overwrite: bool = False, resume: bool = False):
        self.path = path
        self._identity = dict(identity) if identity is not None else None
        self._overwrite = overwrite
        self._appender: Appender | None = None
        self._num_earlier = 0
        self.num_durable = 0
        """Rows on the disk, those of earlier runs included."""
        self.done = DoneRows.none()
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
        if written > self.num_durable and appender is not None:
            try:
                if appender.is_regular:
                    os.fsync(appender.fd)
            except OSError as error:
                raise self._failure(error) from error
            self.num_durable = written

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
            fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
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
            self.done, whole = _read_records(self.path)
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
    """Writes a file so that it is there as a whole or not at all."""
    # Always the same name: what a killed process left of it goes with the next one.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise InferenceError(f"{path} cannot be written: {error.strerror}") from error
    sync_directory(path.parent)


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
        old = json.loads(sidecar.read_bytes())
    except FileNotFoundError:
        raise InputError(f"--resume: there is no {sidecar}, so nobody can tell what made {path}", again) from None
    except (OSError, ValueError) as error:
        raise InputError(f"--resume: {sidecar} cannot be read ({error})", again) from error
    # Through JSON and back, so that a tuple is a list.
    new = json.loads(json.dumps({"format": FORMAT, **identity}))
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key):
            was, now = (json.dumps(side.get(key), ensure_ascii=False) for side in (old, new))
            raise InputError(f"--resume: {path} was begun with {key} {was}, it is {now} now", f"give the same; {again}")


def _read_records(path: Path) -> tuple[DoneRows, int]:
    """What a save file holds, and how long its whole lines are, bytes.

    Raises:
        InputError: a line before the last is no record, or a row is there twice.
    """
    done = DoneRows(NumberSet(), NameSet())
    whole = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            record = _record(line)
            if record is None:
                if file.read(1):
                    hint = "repair that line, or begin anew with --overwrite"
                    raise InputError(f"--resume: {path}:{number} is no record of this job", hint)
                break
            if not done.numbers.add(record["row"]):
                raise InputError(f"--resume: {path}:{number}: row {record['row']} is there twice", "remove one of them")
            error = record.get("error")
            done.failed += error is not None
            if not (isinstance(error, dict) and error.get("type") == DUPLICATE):
                done.names.add(str(record.get("custom_id")))
            whole += len(line)
    return done, whole


def _record(line: bytes) -> dict[str, Any] | None:
    """The record on a line; None for half of one."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    valid = isinstance(record, dict) and type(record.get("row")) is int and record["row"] >= 0
    return record if valid else None
