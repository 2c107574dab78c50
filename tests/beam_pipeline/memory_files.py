"""A file system of Beam's in this process's memory, `mem://`, that is like an object store: it has names and no
directories, and a file is there when it is closed.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator

from apache_beam.io.filesystem import BeamIOError, CompressionTypes, FileMetadata, FileSystem


class MemoryFiles(FileSystem):
    """Files by their paths, with the times at which they were written; all objects share them."""

    files: dict[str, tuple[bytes, float]] = {}

    def __init__(self, pipeline_options=None):
        # An object store has its credentials there.
        assert pipeline_options is not None, "used without the pipeline's options"
        super().__init__(pipeline_options)

    @classmethod
    def scheme(cls):
        return "mem"

    def join(self, basepath, *paths):
        return "/".join([basepath.rstrip("/"), *(path.strip("/") for path in paths)])

    def split(self, path):
        head, _, tail = path.rpartition("/")
        return head, tail

    def mkdirs(self, path):
        pass

    def has_dirs(self):
        return False

    def _list(self, prefix) -> Iterator[FileMetadata]:
        return iter([self.metadata(path) for path in list(self.files) if path.startswith(prefix)])

    def create(self, path, mime_type="", compression_type=CompressionTypes.AUTO):
        return _Written(self.files, path)

    def open(self, path, mime_type="", compression_type=CompressionTypes.AUTO):
        return io.BytesIO(self._stored(path)[0])

    def copy(self, sources, destinations):
        for source, destination in zip(sources, destinations, strict=True):
            self.files[destination] = self._stored(source)

    def rename(self, sources, destinations):
        self.copy(sources, destinations)
        self.delete(sources)

    def exists(self, path):
        return path in self.files

    def size(self, path):
        return len(self._stored(path)[0])

    def last_updated(self, path):
        return self._stored(path)[1]

    def checksum(self, path):
        return str(hash(self._stored(path)[0]))

    def metadata(self, path):
        data, written = self._stored(path)
        return FileMetadata(path, len(data), written)

    def delete(self, paths):
        for path in paths:
            for found in self.match([path])[0].metadata_list:
                del self.files[found.path]

    def _stored(self, path):
        if path not in self.files:
            raise BeamIOError(f"{path} is not there")
        return self.files[path]


class _Written(io.BytesIO):
    """A file on its way into the store."""

    def __init__(self, files, path):
        super().__init__()
        self._files, self._path = files, path

    def close(self):
        if not self.closed:
            self._files[self._path] = (self.getvalue(), time.time())
        super().close()
