"""Bytes and lines of a file or of standard input, decompressed on the way; nothing is read before it is asked for.

What is compressed is told by its first bytes, whatever its name. Knows nothing about rows.
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

from inference.errors import InputError, nearest

STDIN = "-"
STDIN_NAME = "standard input"
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
COMPRESSED = {".gz": GZIP, ".zst": ZSTD}
# The longest line that is read, bytes: a file without newlines must not fill the memory.
LONGEST_LINE = 64 << 20
# Compressed bytes that are decompressed at once; zstd makes up to some thousand times as many of them.
CHUNK = 16 << 10
BUFFER = 64 << 10


class ByteFile:
    """A file, or standard input, that can be read once.

    Args:
        value: a path, or `-`.
        opener: opens it where it is no file of this machine.

    Attributes:
        name: what to call it in errors.
        size: bytes as stored; None where that is not known.
        consumed: how many of these have been used up, roughly.
    """

    def __init__(self, value: str, opener: Callable[[], IO[bytes]] | None = None):
        self.path = None if value == STDIN else Path(value)
        self._opener = opener
        self.name = STDIN_NAME if self.path is None else value
        self.size = self.path.stat().st_size if self.path is not None and self.path.is_file() else None
        self.consumed = 0

    @contextlib.contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """The bytes, decompressed.

        Raises:
            InputError: it cannot be read, is damaged, or nothing is installed that decompresses it.
        """
        try:
            with self._stored() as stored:
                head = _head(stored)
                whole: IO[bytes] = io.BufferedReader(_Joined(head, stored, self), BUFFER)
                if head == GZIP:
                    # It buffers lines itself; a second buffer would lose those before the place where it is cut off.
                    whole = cast(IO[bytes], gzip.GzipFile(fileobj=whole))
                elif head == ZSTD:
                    whole = io.BufferedReader(_Zstd(whole, self.name), BUFFER)
                yield whole
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(f"{self.name} is damaged: {error}", "it may have been cut off; fetch it again") from error
        except OSError as error:
            raise InputError(f"{self.name} cannot be read: {error.strerror or error}") from error

    @contextlib.contextmanager
    def _stored(self) -> Iterator[Any]:
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
        """What a reader that jumps about can open."""
        assert self.path is not None
        return self.path if self._opener is None else self._opener()

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Its lines with their numbers, from 1, as they are, with their ends. Only a newline ends a line; of one that
        is longer than `LONGEST_LINE` no more than that is kept, and one byte, by which it is known.
        """
        number = 0
        with self.open() as file:
            while line := file.readline(LONGEST_LINE + 1):
                number += 1
                yield number, line
                while len(line) > LONGEST_LINE and not line.endswith(b"\n"):
                    line = file.readline(LONGEST_LINE + 1)


def check_file(value: str, suffixes: tuple[str, ...]) -> None:
    """Refuses a file of prompts that is not there.

    Raises:
        InputError: with the nearest name that is.
    """
    path = Path(value)
    if not exists(path) or path.is_dir():
        raise InputError(f"the prompt file {path} does not exist", _file_hint(path))


def exists(path: Path) -> bool:
    """Whether there is such a path; False for a text that cannot be one."""
    try:
        return path.exists()
    except (OSError, ValueError):  # too long for a path, or with a null character
        return False


def _file_hint(path: Path) -> str:
    close = nearest(path.name, [file.name for file in path.parent.iterdir()]) if path.parent.is_dir() else None
    return f"did you mean '{path.parent / close}'?" if close else "a text that ends so can be given through -"


def _head(stored: Any) -> bytes:
    """The first bytes, as many as it takes to tell what they are: nobody who types a short line is kept waiting."""
    head = b""
    while head not in COMPRESSED.values() and any(magic.startswith(head) for magic in COMPRESSED.values()):
        byte = stored.read(1)
        if not byte:
            break
        head += byte
    return head


class _Joined(io.RawIOBase):
    """The bytes that were read to look at them, then the rest; counts them."""

    def __init__(self, head: bytes, rest: Any, counted: ByteFile):
        self._head, self._counted = head, counted
        # `read1` gives what is there; a raw file's `read` does so too.
        self._read = getattr(rest, "read1", rest.read)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._head or self._read(len(buffer)) or b""
        self._head = b""
        buffer[: len(data)] = data
        self._counted.consumed += len(data)
        return len(data)


class _Zstd(io.RawIOBase):
    """Frames of zstd, one after the other. The package's own reader does not notice that the last one is cut off."""

    def __init__(self, stored: IO[bytes], name: str):
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
        self._ready, self._rest = b"", b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            chunk = self._rest or self._stored.read(CHUNK)
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
            self._ready, self._begun = self._frame.decompress(chunk), True
        except self._error as error:
            raise EOFError(str(error)) from error
        if self._frame.eof:
            self._rest, self._begun, self._frame = self._frame.unused_data, False, self._new()
