"""One source of settings, and how to merge several while recording where each key was set.

Knows nested mappings and where each key came from; knows neither YAML nor which keys exist. A layer may be a file, a
Python mapping or one command-line override; later layers win. Mappings are merged key by key; any other value is
replaced.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from inference.errors import ConfigError

KeyPath = tuple[str | int, ...]
MAPPING_ORIGIN = "mapping"


@dataclass
class Layer:
    """The settings of one source.

    Args:
        values: nested dicts with text keys.
        origins: for each key (as a path from the root), where it was set: `file:line` or a flag's name.
        alternatives: for a value typed on a command line, the other way to parse its text; used if the first does
            not fit the key's type (`stop=no` is text, although a plain `no` parses as false).
    """

    values: dict[Any, Any] = field(default_factory=dict)
    origins: dict[KeyPath, str] = field(default_factory=dict)
    alternatives: dict[KeyPath, Any] = field(default_factory=dict)

    def has(self, path: KeyPath) -> bool:
        """Whether `path` is set to something other than null."""
        return self.get(path) is not None

    def get(self, path: KeyPath) -> Any:
        """Returns the value at `path`, or None."""
        node: Any = self.values
        for key in path:
            if not isinstance(node, dict) or key not in node:
                return None
            node = node[key]
        return node

    def put(self, path: KeyPath, value: Any) -> None:
        """Sets `path`, creating missing parent mappings."""
        node = self.values
        for key in path[:-1]:
            child = node.get(key)
            if not isinstance(child, dict):
                child = node[key] = {}
            node = child
        node[path[-1]] = value

    def remove(self, path: KeyPath) -> Any:
        """Removes `path` and everything below it, with their origins; returns its value, or None if it is not set."""
        parent = self.get(path[:-1]) if len(path) > 1 else self.values
        if not isinstance(parent, dict) or path[-1] not in parent:
            return None
        self._forget(path)
        return parent.pop(path[-1])

    def move(self, old: KeyPath, new: KeyPath) -> None:
        """Renames `old` to `new`, and moves its origin and its alternative with it."""
        origin = self.origin(old)
        if old in self.alternatives:
            self.alternatives[new] = self.alternatives.pop(old)
        self.put(new, self.remove(old))
        self.origins[new] = origin

    def origin(self, path: KeyPath) -> str:
        """Returns where `path`, or its nearest ancestor with an origin, was set; `default` if there is none."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.origins:
                return self.origins[path[:length]]
        return "default"

    def lay(self, top: Layer, rivals: Sequence[Sequence[KeyPath]] = ()) -> None:
        """Merges `top` into this layer; `top` wins.

        Args:
            rivals: groups of mutually exclusive keys: if `top` sets one key of a group, the other keys of the group
                are dropped from this layer.
        """
        for group in rivals:
            unset = [path for path in group if not top.has(path)]
            for path in unset if len(unset) < len(group) else []:
                self.remove(path)
        self._merge(self.values, top.values, ())
        self.origins.update(top.origins)
        self.alternatives.update(top.alternatives)

    def copy(self) -> Layer:
        """Returns an independent copy."""
        return Layer(copy.deepcopy(self.values), dict(self.origins), dict(self.alternatives))

    def _merge(self, base: dict[str, Any], top: dict[str, Any], path: KeyPath) -> None:
        for key, value in top.items():
            if isinstance(value, dict) and isinstance(base.get(key), dict):
                self._merge(base[key], value, (*path, key))
            else:
                self._forget((*path, key))
                base[key] = copy.deepcopy(value)

    def _forget(self, path: KeyPath) -> None:
        for table in (self.origins, self.alternatives):
            for known in [known for known in table if known[: len(path)] == path]:
                del table[known]


def lay_all(layers: Iterable[Layer], rivals: Sequence[Sequence[KeyPath]] = ()) -> Layer:
    """Merges the layers into one; later layers win."""
    merged = Layer()
    for layer in layers:
        merged.lay(layer, rivals)
    return merged


def layer_from_mapping(source: Mapping[str, Any], origin: str = MAPPING_ORIGIN) -> Layer:
    """Makes a layer from a Python mapping; every key gets the origin `origin`.

    Raises:
        ConfigError: a key is not text.
    """
    layer = Layer()
    layer.values = _plain_mapping(source, (), origin)
    layer.origins = dict.fromkeys(_paths(layer.values, ()), origin)
    return layer


def _plain_mapping(source: Mapping[Any, Any], path: KeyPath, origin: str) -> dict[str, Any]:
    plain = {}
    for key, value in source.items():
        if not isinstance(key, str):
            where = f" in {dotted(path)}" if path else ""
            raise ConfigError(f"{origin}: the key {key!r}{where} must be text")
        plain[key] = _plain(value, (*path, key), origin)
    return plain


def _plain(value: Any, path: KeyPath, origin: str) -> Any:
    if isinstance(value, Mapping):
        return _plain_mapping(value, path, origin)
    if isinstance(value, (list, tuple)):
        return [_plain(item, (*path, index), origin) for index, item in enumerate(value)]
    return str(value) if hasattr(value, "__fspath__") else value


def _paths(values: Mapping[str, Any], above: KeyPath) -> Iterator[KeyPath]:
    for key, value in values.items():
        yield (*above, key)
        if isinstance(value, Mapping):
            yield from _paths(value, (*above, key))


def dotted(path: KeyPath) -> str:
    """Formats `('a', 'b', 0)` as `a.b[0]`."""
    text = ""
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text
