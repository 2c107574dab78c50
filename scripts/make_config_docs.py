#!/usr/bin/env python3
"""Write docs/config.md from the schema: every section and key of the config, and every flag.

    python scripts/make_config_docs.py [--check]

`--check` writes nothing; its exit code is 1 if the file does not match the schema.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from inference.config import values  # noqa: E402
from inference.config.flags import FLAGS  # noqa: E402
from inference.config.known_keys import NEGATED, NOT_ACTED_ON, RENAMED, TYPED_BUT_NOT_ACTED_ON  # noqa: E402
from inference.config.layer import KeyPath, dotted  # noqa: E402
from inference.config.print_config import flow  # noqa: E402
from inference.config.schema import InferenceConfig  # noqa: E402
from inference.files.values import LARGEST, LARGEST_FLOAT  # noqa: E402

TARGET = ROOT / "docs" / "config.md"
HEAD = """# The config

Made from the schema by `python scripts/make_config_docs.py`; do not edit.

A config is a YAML file in MindFormers' spelling. `base_config` names a file, or a list of files, that it is laid over,
relative to itself. What outranks what: the command line, then the YAML, then its base configs, then the model's own
files (`config.json`, `generation_config.json`), then the defaults below. A key that is in none of these tables is an
error that names its file, its line and the nearest key. Where a key has several spellings, MindFormers' and Hugging
Face's (`num_layers`, `num_hidden_layers`), what outranks another does so in any of them; two of them with different
values in one file, or on one command line, are an error.

A relative path in a YAML means a file beside the YAML or, if there is none, one in the working directory. This holds
for every key that names a file to read. Files that a run writes lie in the working directory, and so do those that the
command line names by a relative path.

Every key can be given on the command line as `--section.key VALUE` or `--options section.key=VALUE`.
`--print_config` shows the merged config and where each key was set; `--check` checks it, loads nothing, and lists the
keys that have no effect.
"""
NAMES: tuple[tuple[Any, str], ...] = (
    (values.Bytes, "bytes, or a size such as `2GiB`"),
    (values.TokenId, "token id"),
    (values.TokenIds, "token id or list"),
    (values.Texts, "text or list"),
    (values.Scores, "mapping, or list of `name=value`"),
    (values.OptionalText, "text"),
    (values.Free, "mapping"),
    (Any, "any"),
    (bool, "`true` / `false`"),
    (str, "text"),
)
LIMITS = (("ge", "from"), ("gt", "above"), ("le", "to"), ("lt", "below"))


def main() -> int:
    text = document()
    if "--check" in sys.argv[1:]:
        return 0 if TARGET.is_file() and TARGET.read_text(encoding="utf-8") == text else 1
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(text, encoding="utf-8")
    return 0


def document() -> str:
    """Return the whole page."""
    parts = [HEAD, *(section_text(kind, path) for kind, path in sections(InferenceConfig, ())), flags(), other_names()]
    return "\n".join(parts)


def sections(kind: Any, path: KeyPath) -> Iterator[tuple[Any, KeyPath]]:
    """Yield the class and path of a section and of all sections inside it."""
    yield kind, path
    for name, hint in hints(kind).items():
        if is_section(hint):
            yield from sections(hint, (*path, name))
        elif get_origin(hint) is dict and is_section(get_args(hint)[1]):
            yield from sections(get_args(hint)[1], (*path, name, "NAME"))


def hints(kind: Any) -> dict[str, Any]:
    """Return a section's keys and their types."""
    found = get_type_hints(kind, include_extras=True)
    return {name: found[name] for name in fields(kind)}


def fields(kind: Any) -> dict[str, Any]:
    return dict(kind.__pydantic_fields__)


def is_section(hint: Any) -> bool:
    return hasattr(hint, "__pydantic_fields__")


def section_text(kind: Any, path: KeyPath) -> str:
    """Document one section: its purpose, its keys, and the keys accepted without effect."""
    title = f"`{dotted(path)}`" if path else "Top level"
    rows = [row(name, hint, fields(kind)[name], path) for name, hint in hints(kind).items() if not is_section(hint)]
    lines = [f"## {title}\n", purpose(kind, path)]
    if rows:
        lines += ["| Key | Value | Default | Meaning |\n|---|---|---|---|", *rows, ""]
    unused = sorted(NOT_ACTED_ON.get(path, frozenset()) | TYPED_BUT_NOT_ACTED_ON.get(path, frozenset()))
    if unused:
        lines.append(f"Accepted without effect: {', '.join(f'`{name}`' for name in unused)}.\n")
    return "\n".join(lines)


def purpose(kind: Any, path: KeyPath) -> str:
    """Return the schema's description of a section: that of its key, otherwise its class's docstring."""
    if not path:
        return "Keys outside any section.\n"
    described = fields(InferenceConfig)[path[0]].description if len(path) == 1 else None
    if described:
        return f"{described}\n"
    text = str(kind.__doc__).splitlines()[0]
    sentence = text.partition(": ")[2] or text
    return f"{sentence[0].upper()}{sentence[1:]}\n"


def row(name: str, hint: Any, field: Any, path: KeyPath) -> str:
    default = "" if field.default in (None, (), "") or field.is_required() else f"`{flow(field.default)}`"
    if field.default_factory is not None:
        default = ""
    mark = " (no effect)" if name in TYPED_BUT_NOT_ACTED_ON.get(path, ()) else ""
    return f"| `{name}` | {value(hint)} | {default} | {escaped(field.description or '')}{mark} |"


def value(hint: Any, extras: tuple[Any, ...] = ()) -> str:
    """Describe the values that a type accepts."""
    for extra in extras:
        if getattr(getattr(extra, "func", None), "__qualname__", "").startswith("only."):
            return f"`{inspect.getclosurevars(extra.func).nonlocals['wording']}` only"
    named = next((name for known, name in NAMES if hint == known), None)
    if named:
        return named
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return value(arguments[0], arguments[1:])
    if origin in (Union, UnionType):
        return " or ".join(value(part, extras) for part in arguments if part is not NoneType)
    if origin is Literal:
        return " / ".join(f"`{choice}`" for choice in arguments)
    if hint in (int, float):
        return " ".join(["integer" if hint is int else "number", *limits(extras)])
    return {dict: "mapping", tuple: "list of mappings"}[origin]


def limits(extras: tuple[Any, ...]) -> Iterator[str]:
    bounds = [bound for extra in extras for bound in getattr(extra, "metadata", [])]
    for name, word in LIMITS:
        for bound in bounds:
            # What the kernels can hold is no limit that a reader would choose.
            if getattr(bound, name, None) not in (None, LARGEST, LARGEST_FLOAT):
                yield f"{word} {getattr(bound, name):g}"


def escaped(text: str) -> str:
    return text.replace("|", "\\|")


def flags() -> str:
    """Document the flags that have their own key."""
    lines = ["## Flags\n", "`--help` explains them. Each sets a key:\n", "| Flag | Key |\n|---|---|"]
    lines += [f"| `{flag.name}` | `{flag.path}` |" for flag in FLAGS if flag.acted_on]
    unused = ", ".join(f"`{flag.name}`" for flag in FLAGS if not flag.acted_on)
    return "\n".join([*lines, "", f"MindFormers' other flags are accepted without effect: {unused}.\n"])


def other_names() -> str:
    """Document MindFormers' alternative names of keys."""
    lines = ["## Other names\n", "| Name | Is |\n|---|---|"]
    lines += [f"| `{dotted(old)}` | `{dotted(new)}` |" for old, new in RENAMED.items()]
    lines += [f"| `{dotted(old)}` | not `{dotted(new)}` |" for old, new in NEGATED.items()]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
