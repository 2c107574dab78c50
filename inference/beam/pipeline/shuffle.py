"""Groups rows by name through files in `.parts`, without help from the engine.

A reading task writes its items into spill files, sorted by part; a part's task reads its own section of each of them.
The death of a worker or a machine loses nothing that was written, and any engine that can call functions can run
a pipeline. Knows keys, items and files; knows nothing about rows or engines.
"""

from __future__ import annotations

import json
import pickle
import struct
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Any

from inference.beam.pipeline.files import SPILL, OutputDirectory, open_file

# A task writes a spill file when its pickled items reach this many bytes, which limits its memory.
SPILL_BYTES = 64 * 2**20
_LENGTH = struct.Struct("<Q")


def part_of(key: str, parts: int) -> int:
    """Return the part of a key, by a hash that is the same in every process."""
    digest = blake2b(key.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % parts


class SpillWriter:
    """Writes the items of one task.

    Args:
        name: name of the task. Tasks with the same name replace each other's files.
        parts: number of parts.

    Attributes:
        paths: paths of the files written.
    """

    def __init__(self, output: OutputDirectory, name: str, parts: int):
        self._output, self._name, self._parts = output, name, parts
        self._items: dict[int, list[bytes]] = defaultdict(list)
        self._bytes = 0
        self.paths: list[str] = []

    def add(self, key: str, item: Any) -> None:
        """Add an item to the part of its key."""
        data = pickle.dumps((key, item))
        self._items[part_of(key, self._parts)].append(data)
        self._bytes += len(data)
        if self._bytes >= SPILL_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the items added since the last flush."""
        if not self._items:
            return
        sections, index, start = [], {}, 0
        for part, items in sorted(self._items.items()):
            sections.append(zlib.compress(pickle.dumps(items), 1))
            index[part] = (start, len(sections[-1]))
            start += len(sections[-1])
        head = json.dumps(index).encode()
        name = f"{self._name}-{len(self.paths):06}{SPILL}"
        self._output.put_part(name, b"".join([_LENGTH.pack(len(head)), head, *sections]))
        self.paths.append(self._output.part(name))
        self._items.clear()
        self._bytes = 0


def read_part(paths: Sequence[str], part: int) -> Iterator[tuple[str, Any]]:
    """Yield the (key, item) pairs of a part, file by file."""
    for path in paths:
        with open_file(path) as file:
            (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
            section = json.loads(file.read(length)).get(str(part))
            if section is None:
                continue
            file.seek(_LENGTH.size + length + section[0])
            items = pickle.loads(zlib.decompress(file.read(section[1])))
        for item in items:
            yield pickle.loads(item)
