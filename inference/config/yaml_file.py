"""Reads a YAML file into a layer: plain values, and the line of every key.

Knows YAML, its quirks and the ways a file can be unreadable; knows nothing about which keys exist. Constructs only
null, booleans, numbers, text, lists and mappings, whatever the tags in the file ask for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from inference.config.layer import KeyPath, Layer
from inference.config.yaml_scalars import resolve_plain
from inference.errors import ConfigError, nearest, reason_of

try:
    from yaml import CSafeLoader as _SafeLoader
except ImportError:  # PyYAML built without libyaml
    from yaml import SafeLoader as _SafeLoader  # type: ignore[assignment]

_STANDARD = "tag:yaml.org,2002:"
_MERGE = f"{_STANDARD}merge"
_PLAIN = "!plain"  # marks an unquoted scalar without a tag of its own
_TEXT = f"{_STANDARD}str"
_EXPLICIT_TYPES: dict[str, Any] = {
    f"{_STANDARD}null": type(None),
    f"{_STANDARD}bool": bool,
    f"{_STANDARD}int": int,
    f"{_STANDARD}float": (int, float),
}
_ANCHORS = "x-"  # top-level keys that only hold anchors for other keys
_MOST_NODES = 200_000  # limit, because aliases of aliases can grow exponentially
_MOST_KEYS = 20_000
# At the start of a line, or in a mapping in braces.
_KEY = re.compile(r"""(?:^|[{,])[ \t]*["']?[\w.\-]+["']?[ \t]*:(?=\s)""", re.MULTILINE)
_DEEPEST = 100
_LARGEST = 8 * 1024 * 1024  # bytes; catches weights given in place of a config
_YAML = (".yaml", ".yml")
_MODELS = (".gguf",)  # files that can be given in place of a config
_BRACKETS = re.compile(r"[][{}]")


class _Composer(_SafeLoader):
    """Composes nodes; leaves the interpretation of unquoted text to `resolve_plain`."""

    yaml_implicit_resolvers: dict[Any, Any] = {}


_Composer.add_implicit_resolver(_MERGE, re.compile(r"<<\Z"), ["<"])
_Composer.add_implicit_resolver(_PLAIN, re.compile(r""), None)


def read_yaml(path: Path, shown: str) -> Layer:
    """Reads one file; `base_config` is left in place.

    Args:
        path: file to read.
        shown: name of the file in errors and origins.

    Raises:
        ConfigError: the file is missing, unreadable, empty, not UTF-8, not YAML or not a mapping, has a duplicate key,
            or asks for a Python object.
    """
    text = _read_text(path, shown)
    _refuse_depth(text, shown)
    _refuse_many_keys(text, shown)
    try:
        documents = list(yaml.compose_all(text, _Composer))
    except yaml.YAMLError as error:
        raise _syntax_error(error, shown, text) from None
    if not documents or documents[0] is None or _is_null(documents[0]):
        raise ConfigError(f"{shown} is empty", "a config is a mapping of keys, such as 'run_mode: predict'")
    if len(documents) > 1:
        raise ConfigError(f"{shown}:{_line(documents[1])}: a second document begins here", "keep one in a file")
    if not isinstance(documents[0], yaml.MappingNode):
        raise ConfigError(f"{shown} holds {_kind(documents[0])}", "a config is a mapping of keys, each 'key: value'")
    layer = _Converter(shown).layer(documents[0])
    for key in [key for key in layer.values if key.startswith(_ANCHORS)]:
        layer.remove((key,))
    return layer


def read_flow(text: str) -> Any:
    """Parses one YAML value, such as `[1, 2]` or `"text"`.

    Raises:
        ConfigError: `text` is not YAML, or asks for a Python object.
    """
    shown = "value"
    _refuse_depth(text, shown)
    try:
        node = yaml.compose(text, _Composer)
    except yaml.YAMLError as error:
        raise _syntax_error(error, shown, text) from None
    return None if node is None else _Converter(shown).value(node)


def _read_text(path: Path, shown: str) -> str:
    try:
        if path.is_dir():
            raise ConfigError(f"{shown} is a directory, not a YAML file", _yaml_inside(path, shown))
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise ConfigError(f"{shown} is larger than {_LARGEST} bytes", "a config is a short YAML file")
        return content.decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{shown} does not exist", _nearest_file(path, shown)) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{shown} is not UTF-8 text (byte {error.start})", "a config is a YAML file") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{shown} cannot be read: {reason_of(error)}") from None


def _files(directory: Path, suffixes: tuple[str, ...]) -> list[str]:
    try:
        return sorted(file.name for file in directory.iterdir() if file.suffix in suffixes)
    except OSError:
        return []


def _yaml_inside(path: Path, shown: str) -> str:
    if found := _files(path, _YAML):
        return f"give a file in it, such as {Path(shown) / found[0]}"
    return "it has no config.json either, so it is not a model; give a .yaml file or a model's directory"


def _nearest_file(path: Path, shown: str) -> str:
    folder = Path(shown).parent
    if not path.parent.is_dir():
        return f"there is no directory {folder}"
    close = nearest(path.name, _files(path.parent, _YAML)) or nearest(path.name, _files(path.parent, _MODELS))
    return f"did you mean '{folder / close}'?" if close else "give the path of a YAML file"


def _refuse_depth(text: str, shown: str) -> None:
    """Rejects brackets or indentation so deep that they would overflow the parser's stack."""
    depth = 0
    for number, line in enumerate(text.splitlines(), start=1):
        indentation = len(line) - len(line.lstrip(" -?"))
        for bracket in _BRACKETS.findall(line):
            depth = depth + 1 if bracket in "[{" else max(0, depth - 1)
            if depth > _DEEPEST:
                break
        if depth > _DEEPEST or indentation > 2 * _DEEPEST:
            raise ConfigError(f"{shown}:{number}: nested more than {_DEEPEST} deep")


def _refuse_many_keys(text: str, shown: str) -> None:
    """Rejects a file with more keys than any config has, before the seconds that it takes to parse them."""
    if sum(1 for _ in islice(_KEY.finditer(text), _MOST_KEYS + 1)) > _MOST_KEYS:
        raise ConfigError(f"{shown} has more than {_MOST_KEYS:,} keys", "a config is a short YAML file")


def _syntax_error(error: yaml.YAMLError, shown: str, text: str) -> ConfigError:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    where = f"{shown}:{mark.line + 1}" if mark else shown
    if mark and "\t" in _indentation(text, mark.line):
        return ConfigError(f"{where}: not valid YAML: the line is indented with a tab", "use spaces")
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    return ConfigError(f"{where}: not valid YAML: {problem}")


def _indentation(text: str, number: int) -> str:
    lines = text.splitlines()
    line = lines[number] if number < len(lines) else ""
    return line[: len(line) - len(line.lstrip())]


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == _PLAIN and resolve_plain(node.value) is None


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return f"only the text {str(node.value)[:40]!r}"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"


class _Converter:
    """Converts composed nodes to plain values and records the line of every key."""

    def __init__(self, shown: str):
        self.shown = shown
        self.result = Layer()
        self.nodes = 0
        self.open: set[int] = set()  # nodes being converted, to detect a node that contains itself

    def layer(self, node: yaml.MappingNode) -> Layer:
        self.result.values = self._mapping(node, ())
        return self.result

    def value(self, node: yaml.Node, path: KeyPath = ()) -> Any:
        self.nodes += 1
        if self.nodes > _MOST_NODES:
            raise ConfigError(f"{self._at(node)}: aliases repeat more than {_MOST_NODES} values")
        if id(node) in self.open:
            raise ConfigError(f"{self._at(node)}: an anchor contains itself")
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            return self._sequence(node, path) if isinstance(node, yaml.SequenceNode) else self._scalar(node)
        finally:
            self.open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        self._check_tag(node, "map")
        values: dict[str, Any] = {}
        for key, key_node, value_node in self._pairs(node):
            here = (*path, key)
            self.result.origins[here] = self._at(key_node)
            values[key] = self.value(value_node, here)
        return values

    def _pairs(self, node: yaml.MappingNode) -> list[tuple[str, yaml.Node, yaml.Node]]:
        """Returns the mapping's own pairs, then the pairs from its `<<` merges whose keys it does not have itself."""
        own: dict[str, tuple[str, yaml.Node, yaml.Node]] = {}
        merged: dict[str, tuple[str, yaml.Node, yaml.Node]] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                for pair in self._merged_pairs(value_node):
                    merged.setdefault(pair[0], pair)
                continue
            key = self._key(key_node)
            if key in own:
                first = _line(own[key][1])
                raise ConfigError(f"{self._at(key_node)}: the key '{key}' is already set on line {first}")
            own[key] = (key, key_node, value_node)
        return list({**merged, **own}.values())

    def _merged_pairs(self, node: yaml.Node) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        for source in sources:
            if not isinstance(source, yaml.MappingNode):
                raise ConfigError(f"{self._at(node)}: '<<' merges mappings only", "give it '*name' of a mapping")
            if id(source) in self.open:
                raise ConfigError(f"{self._at(source)}: an anchor contains itself")
            self.open.add(id(source))
            self.nodes += 1
            yield from self._pairs(source)
            self.open.discard(id(source))

    def _key(self, node: yaml.Node) -> str:
        # Use the raw text, so that `on:` and `1:` are the keys 'on' and '1'.
        if not isinstance(node, yaml.ScalarNode):
            raise ConfigError(f"{self._at(node)}: a key must be text, not {_kind(node)}")
        if node.tag not in (_PLAIN, _TEXT):
            raise self._tag_error(node)
        return str(node.value)

    def _sequence(self, node: yaml.SequenceNode, path: KeyPath) -> list[Any]:
        self._check_tag(node, "seq")
        items = []
        for index, item in enumerate(node.value):
            here = (*path, index)
            self.result.origins[here] = self._at(item)
            items.append(self.value(item, here))
        return items

    def _scalar(self, node: yaml.Node) -> Any:
        if node.tag in (_TEXT, _MERGE):
            return node.value
        if node.tag != _PLAIN and node.tag not in _EXPLICIT_TYPES:
            raise self._tag_error(node)
        value = resolve_plain(node.value)
        if not isinstance(value, _EXPLICIT_TYPES.get(node.tag, object)):
            raise ConfigError(f"{self._at(node)}: {node.value!r} is not of the type that its tag says")
        return value

    def _check_tag(self, node: yaml.Node, name: str) -> None:
        if node.tag != f"{_STANDARD}{name}":
            raise self._tag_error(node)

    def _tag_error(self, node: yaml.Node) -> ConfigError:
        tag = node.tag.replace(_STANDARD, "!!")
        return ConfigError(
            f"{self._at(node)}: the tag {tag} is not accepted", "write plain values; no objects are made"
        )

    def _at(self, node: yaml.Node) -> str:
        return f"{self.shown}:{_line(node)}"
