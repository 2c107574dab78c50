"""Reads bytes and lines of a file or standard input lazily, and decompresses them on the way.

Memory stays bounded whatever the file holds: decompression works in small chunks, and long lines are truncated. The
compression is detected from the first bytes, not from the name. Knows nothing about rows.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from inference.config.input_formats import MAX_LINE_BYTES
from inference.errors import InputError, nearest, reason_of

STDIN = "-"
STDIN_NAME = "standard input"
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
MAGIC_NUMBERS = (GZIP, ZSTD)
# Compressed bytes to decompress at once. A zstd block can turn 4 bytes into 128 KiB (RFC 8878), so a chunk expands to
# at most 8 MiB.
CHUNK = 256
BUFFER = 64 << 10
# A line longer than this many times the limit ends the input: it may never end.
HOPELESS = 16
# More consecutive blank lines than this also end the input.
BLANK_LINES = 1_000_000


class ByteFile:
    """A file, or standard input, that can be read once.

    Args:
        value: a path, or `-`.
        opener: opens a file that is not on this machine.
        max_line_bytes: the longest line that is kept whole.

    Attributes:
        name: the name to use in errors.
        size: size as stored, bytes; None if unknown.
    """

    def __init__(self, value: str, opener: Callable[[], IO[bytes]] | None = None, max_line_bytes: int = MAX_LINE_BYTES):
        self.path = None if value == STDIN else Path(value)
        self._opener = opener
        self.name = STDIN_NAME if self.path is None else value
        self.size = self.path.stat().st_size if self.path is not None and self.path.is_file() else None
        self.max_line_bytes = max_line_bytes
        self._stored: _Counted | None = None
        self._is_compressed = False
        self._parsed = 0

    @property
    def consumed(self) -> int:
        """Stored bytes consumed so far, by the lines yielded or by the decompressor."""
        if self._is_compressed and self._stored is not None:
            return self._stored.count
        return self._parsed

    @contextlib.contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Opens the file and decompresses it.

        Raises:
            InputError: the file cannot be read or is damaged, or the package to decompress it is missing.
        """
        try:
            with self._open_stored() as stored:
                head = _head(stored)
                whole = io.BufferedReader(_Joined(head, stored), BUFFER)
                self._is_compressed = head in MAGIC_NUMBERS
                self._stored = _Counted(whole)
                if head == GZIP:
                    # GzipFile has its own buffer; a second one would lose the lines before a truncation.
                    yield cast(IO[bytes], gzip.GzipFile(fileobj=cast(IO[bytes], self._stored)))
                elif head == ZSTD:
                    yield io.BufferedReader(_Zstd(self._stored, self.name), BUFFER)
                else:
                    yield whole
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(f"{self.name} is damaged: {error}", "it may have been cut off; fetch it again") from error
        except OSError as error:
            raise InputError(f"{self.name} cannot be read: {reason_of(error)}") from error

    @contextlib.contextmanager
    def _open_stored(self) -> Iterator[Any]:
        if self._opener is not None:
            with contextlib.closing(self._opener()) as file:
                yield file
        elif self.path is not None:
            with self.path.open("rb", buffering=0) as file:
                yield file
        elif sys.stdin is None:
            raise InputError("standard input is closed", "give it prompts, a line each, or name a file")
        else:
            yield sys.stdin.buffer

    def seekable(self) -> Path | IO[bytes]:
        """A path or file for a reader that needs random access."""
        assert self.path is not None
        return self.path if self._opener is None else self._opener()

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Yields the lines with their numbers, from 1, and their line endings. Only a newline ends a line. A line
        longer than `max_line_bytes` is truncated to that many bytes plus one (`is_too_long`).

        Raises:
            InputError: as for `open`; or a line, or a run of blank lines, seems endless.
        """
        number = blank_lines = blank_bytes = 0
        with self.open() as file:
            while line := file.readline(self.max_line_bytes + 1):
                number += 1
                self._parsed += len(line)
                if is_blank(line):
                    blank_lines, blank_bytes = blank_lines + 1, blank_bytes + len(line)
                    if blank_lines > BLANK_LINES or blank_bytes > self.max_line_bytes:
                        raise self._endless(number, f"{blank_lines:,} blank lines in a row")
                else:
                    blank_lines = blank_bytes = 0
                yield number, line
                self._pass_over_rest(file, line, number)

    def is_too_long(self, line: bytes) -> bool:
        """Whether a line of `lines` is truncated."""
        return len(line) > self.max_line_bytes

    def _pass_over_rest(self, file: IO[bytes], line: bytes, number: int) -> None:
        passed = len(line)
        while self.is_too_long(line) and not line.endswith(b"\n"):
            line = file.readline(self.max_line_bytes + 1)
            passed += len(line)
            self._parsed += len(line)
            if passed > HOPELESS * self.max_line_bytes:
                raise self._endless(number, f"a line of more than {HOPELESS} times input.max_line_bytes")

    def _endless(self, number: int, what: str) -> InputError:
        return InputError(f"{self.name}:{number}: {what}", "this does not look like a file of prompts")


def is_blank(line: bytes) -> bool:
    """Whether a line holds only whitespace, Unicode whitespace included."""
    if not line.strip():
        return True
    return len(line) < 100 and not line.isascii() and not line.decode("utf-8-sig", "replace").strip()


def check_file(value: str, suffixes: tuple[str, ...]) -> None:
    """Rejects a prompt file that does not exist.

    Raises:
        InputError: there is no such file; the hint gives the nearest name that exists.
    """
    path = Path(value)
    if not exists(path) or path.is_dir():
        raise InputError(f"the prompt file {path} does not exist", _file_hint(path, suffixes))


def exists(path: Path) -> bool:
    """Whether a path exists; False for a text that cannot be a path."""
    try:
        return path.exists()
    except (OSError, ValueError):  # too long for a path, or with a null character
        return False


def _file_hint(path: Path, suffixes: tuple[str, ...]) -> str:
    files = path.parent.iterdir() if path.parent.is_dir() else ()
    close = nearest(path.name, [file.name for file in files if file.name.lower().endswith(suffixes)])
    return (
        f"did you mean '{path.parent / close}'?"
        if close
        else "a prompt that ends like a file name goes through stdin: --predict_data -"
    )


def _head(stored: Any) -> bytes:
    """Reads just enough bytes to detect the compression, so that a short typed line is not held up."""
    head = b""
    while head not in MAGIC_NUMBERS and any(magic.startswith(head) for magic in MAGIC_NUMBERS):
        byte = stored.read(1)
        if not byte:
            break
        head += byte
    return head


class _Joined(io.RawIOBase):
    """The bytes read to detect the compression, then the rest."""

    def __init__(self, head: bytes, rest: Any):
        self._head = head
        # `read1` returns the bytes available, as does `read` of a raw file.
        self._read = getattr(rest, "read1", rest.read)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._head or self._read(len(buffer)) or b""
        self._head = b""
        buffer[: len(data)] = data
        return len(data)


class _Counted:
    """A file that counts the bytes a decompressor takes."""

    def __init__(self, file: Any):
        self._file = file
        self.count = 0

    def read(self, size: int = -1) -> bytes:
        return self._note(self._file.read(size))

    def read1(self, size: int = -1) -> bytes:
        return self._note(self._file.read1(size))

    def _note(self, data: bytes) -> bytes:
        self.count += len(data)
        return data


class _Zstd(io.RawIOBase):
    """Decompresses consecutive zstd frames. The package's own reader does not detect a truncated last frame."""

    def __init__(self, stored: _Counted, name: str):
        try:
            import zstandard
        except ImportError:
            raise InputError(
                f"{name} is compressed with zstd, which needs the package zstandard", "pip install zstandard"
            ) from None
        self._stored, self._new = stored, zstandard.ZstdDecompressor().decompressobj
        self._error = zstandard.ZstdError
        self._frame = self._new()
        self._begun = False
        self._ready, self._rest = memoryview(b""), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            chunk = self._rest or self._stored.read1(CHUNK)
            if not chunk:
                if self._begun:
                    raise EOFError("its last frame is not complete")
                return 0
            self._rest = b""
            self._decompress(chunk)
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def _decompress(self, chunk: bytes) -> None:
        try:
            self._ready, self._begun = memoryview(self._frame.decompress(chunk)), True
        except self._error as error:
            raise EOFError(str(error)) from error
        if self._frame.eof:
            self._rest, self._begun, self._frame = self._frame.unused_data, False, self._new()
