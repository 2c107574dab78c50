"""A file imports its own layer or a lower one (design.md), and MindSpore only where it is meant to be."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parents[1] / "inference"
# What lies in a layer: files and folders of the package. The longest path that fits decides.
LAYERS = (
    (
        "errors",
        "notices",
        "files",
        "config",
        "inputs",
        "checkpoint",
        "tokenizer",
        "structured",
        "remote",
        "kernels/formats",
        "parallel/heartbeat",
    ),
    ("context", "kernels", "parallel"),
    ("models",),
    ("engine", "generation"),
    (
        "terminal",
        "api",
        "jobs",
        "evaluate",
        "validate",
        "answering",
        "ray",
        "spark",
        "beam",
        "launcher",
        "mindformers_bridge",
        "serve",
        "chat",
    ),
    ("modes", "cli", "__init__", "__main__"),
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


@cache
def layer_of(path: str) -> int:
    """The layer of a file or folder of the package: `models/weights/lora`, `config`."""
    parts = path.split("/")
    for length in range(len(parts), 0, -1):
        found = [number for number, paths in enumerate(LAYERS) if "/".join(parts[:length]) in paths]
        if found:
            assert len(found) == 1, f"{path}: in several layers"
            return found[0]
    raise AssertionError(f"inference/{path}: put it into a layer of tests/test_layers.py")


@cache
def path_of(module: str) -> str | None:
    """The file or folder of a module of this package (`models/decoder`), None for a name that is none of ours."""
    parts = module.split(".")
    if parts[0] != "inference":
        return None
    while len(parts) > 1:
        path = "/".join(parts[1:])
        if (PACKAGE / f"{path}.py").is_file() or (PACKAGE / path / "__init__.py").is_file():
            return path
        parts.pop()
    return None


def source_of(file: str) -> str:
    return (PACKAGE / file).read_text(encoding="utf-8")


@cache
def imported_paths(file: str) -> list[tuple[str, int]]:
    """What a file imports of this package, with the lines."""
    found = ((path_of(module), line) for module, line in _whole_names(ast.parse(source_of(file))))
    return [(path, line) for path, line in found if path is not None and f"{path}.py" != file]


def _whole_names(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """`from a import b` as a.b, whether b is a module or a name in one."""
    hidden = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node not in hidden:
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Import) and node not in hidden:
            yield from ((alias.name, node.lineno) for alias in node.names)


def circles(graph: Mapping[str, Collection[str]]) -> list[list[str]]:
    """Each circle of a graph of imports, by the standard library's sorter: at most one, the first that it meets."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [error.args[1]]
    return []


def test_every_module_has_a_layer() -> None:
    for file in FILES:
        assert layer_of(file.removesuffix(".py")) >= 0


def test_imports_go_down() -> None:
    up = [
        f"inference/{file}:{line} imports {path}, which is in a higher layer"
        for file in FILES
        for path, line in imported_paths(file)
        if layer_of(path) > layer_of(file.removesuffix(".py"))
    ]
    assert up == []


def test_no_files_import_each_other() -> None:
    graph = {file.removesuffix(".py"): {path for path, _ in imported_paths(file)} for file in FILES}
    assert circles(graph) == []


def test_no_folders_import_each_other() -> None:
    """Loose files of the package (errors, context) count as folders of their own."""
    graph: dict[str, set[str]] = {}
    for file in FILES:
        if "/" in file:
            own = file.rpartition("/")[0]
            others = {_folder_of(path) for path, _ in imported_paths(file)}
            graph.setdefault(own, set()).update(others - {own})
    assert circles(graph) == []


def _folder_of(path: str) -> str:
    if (PACKAGE / path).is_dir() or "/" not in path:
        return path
    return path.rpartition("/")[0]


def test_a_cycle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}})


def test_mindspore_is_imported_late() -> None:
    for file in FILES:
        plain = layer_of(file.removesuffix(".py")) == 0
        for module, line, at_top in imports_of(source_of(file)):
            if module.split(".")[0] in ("mindspore", "mindformers"):
                assert not plain, f"{file}:{line}: plain Python never imports {module}"
                assert not at_top or file.startswith(MINDSPORE_AT_TOP), f"{file}:{line} imports {module} at its top"


def test_torch_and_transformers_are_not_dependencies() -> None:
    for file in FILES:
        used = {module.split(".")[0] for module, _, _ in imports_of(source_of(file))}
        assert not used & {"torch", "transformers"}, file


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
            from inference.cli.main import main
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
        ("inference.cli.main", False),
        ("matched", True),
    ]


def test_the_command_line_imports_no_framework() -> None:
    program = (
        "import sys, inference, inference.cli.main, inference.modes, inference.api.auto, inference.api.pipeline\n"
        "heavy = {'mindspore', 'mindformers', 'torch', 'transformers'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
