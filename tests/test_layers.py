"""A file imports its own layer or a lower one (design.md), and MindSpore only where it is meant to be."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[1] / "inference"
LAYERS = (
    {
        "errors",
        "config",
        "request",
        "blocks",
        "scheduler",
        "metrics",
        "latency",
        "prompts",
        "inputs",
        "pulse",
        "remote",
    },
    {"context", "kernels", "parallel"},
    {"models", "tokenizer"},
    {"generation"},
    {
        "page",
        "evaluate",
        "auto",
        "backend",
        "beam",
        "llm",
        "mindformers_bridge",
        "pipeline",
        "jobs",
        "report",
        "modes",
        "cli",
        "launcher",
        "interrupt",
        "__init__",
        "__main__",
    },
)
MINDSPORE_AT_TOP = (
    "kernels/",
    "models/decoder.py",
    "models/encoder_decoder.py",
    "mindformers_bridge/network.py",
)
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


class Import(NamedTuple):
    """`at_top`: it runs when the file is imported. Imports for type checkers alone are not listed."""

    module: str
    line: int
    at_top: bool


def imports_of(source: str, package: str = "inference") -> Iterator[Import]:
    """Every module that `source` imports, wherever in it; `from inference import x` counts as `inference.x`."""
    yield from _imports(ast.parse(source).body, package, True)


def _imports(nodes: list[ast.stmt], package: str, at_top: bool) -> Iterator[Import]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, at_top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}" if node.module == package else str(node.module)
                yield Import(whole, node.lineno, at_top)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from _imports(node.orelse, package, at_top)
        else:
            in_function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            inner = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
            handlers = [stmt for handler in getattr(node, "handlers", []) for stmt in handler.body]
            cases = [stmt for case in getattr(node, "cases", []) for stmt in case.body]
            yield from _imports(inner + handlers + cases, package, at_top and not in_function)


def layer_of(name: str) -> int:
    """The layer of a top-level name of the package."""
    return next(number for number, names in enumerate(LAYERS) if name in names)


def top_level_name(file: str) -> str:
    return file.split("/")[0].removesuffix(".py")


@pytest.mark.parametrize("file", FILES)
def test_every_module_has_a_layer(file: str) -> None:
    assert sum(top_level_name(file) in names for names in LAYERS) == 1, f"{file}: put it into a layer"


@pytest.mark.parametrize("file", FILES)
def test_imports_go_down(file: str) -> None:
    own = layer_of(top_level_name(file))
    for module, line, _ in imports_of((PACKAGE / file).read_text(encoding="utf-8")):
        parts = module.split(".")
        if parts[0] == "inference":
            # `from inference import __version__` is no module of any layer.
            name = parts[1] if len(parts) > 1 and not parts[1].startswith("__") else None
            assert name is None or layer_of(name) <= own, f"{file}:{line} imports {module}, of a higher layer"


@pytest.mark.parametrize("file", FILES)
def test_mindspore_is_imported_late(file: str) -> None:
    plain = layer_of(top_level_name(file)) == 0
    for module, line, at_top in imports_of((PACKAGE / file).read_text(encoding="utf-8")):
        if module.split(".")[0] in ("mindspore", "mindformers"):
            assert not plain, f"{file}:{line}: plain Python never imports {module}"
            assert not at_top or file.startswith(MINDSPORE_AT_TOP), f"{file}:{line} imports {module} at its top"


@pytest.mark.parametrize("file", FILES)
def test_torch_and_transformers_are_no_dependency(file: str) -> None:
    used = {module.split(".")[0] for module, _, _ in imports_of((PACKAGE / file).read_text(encoding="utf-8"))}
    assert not used & {"torch", "transformers"}


def test_the_walk_sees_every_kind_of_import() -> None:
    source = """
import mindspore.ops as ops
from inference import modes
if TYPE_CHECKING:
    import hidden
else:
    import shown
try:
    import tried
except ImportError:
    import rescued
class A:
    import inside
    def method(self):
        with open("x") as file:
            from inference.cli import main
match 1:
    case 1:
        import matched
"""
    assert [(found.module, found.at_top) for found in imports_of(source)] == [
        ("mindspore.ops", True),
        ("inference.modes", True),
        ("shown", True),
        ("tried", True),
        ("rescued", True),
        ("inside", True),
        ("inference.cli", False),
        ("matched", True),
    ]


def test_the_command_line_imports_no_framework() -> None:
    program = (
        "import sys, inference, inference.cli, inference.modes, inference.auto, inference.pipeline\n"
        "heavy = {'mindspore', 'mindformers', 'torch', 'transformers'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
