"""Jinja's sandbox with time and size limits, for templates from a model or a config.

Knows Jinja; knows nothing about chats. Jinja's own sandbox restricts what a template can read or change, but does not
prevent it from running forever or exhausting memory. So every loop, call, filter, operator, slice and output here
counts against limits that no real template approaches.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from jinja2 import Environment, Template

CPU_SECONDS = 5.0
# Maximum characters and items of one value with its parts; of all values that a template makes; rounds of all loops.
LARGEST_VALUE = 1 << 24
LARGEST_TOTAL = 1 << 29
# Maximum items of one value with its parts, which are counted one by one.
MOST_ITEMS = 1 << 19
MOST_ROUNDS = 5_000_000
# Maximum characters of a template, because the depth of Jinja's compiler stack grows with the template's nesting.
LARGEST_SOURCE = 1 << 20
# Maximum number passed to a filter or method: a width, an indent, a count.
LARGEST_ARGUMENT = 100_000
LARGEST_BITS = 1 << 16
ROUNDS_A_CHECK = 64
# Large widths and precisions in format strings of % and str.format; `*` and nested fields read them from a value.
_WIDE_PERCENT = re.compile(r"%[^a-zA-Z%]*(\d{5}|\*)")
_WIDE_FORMAT = re.compile(r":[^{}]*(\d{5}|\{)")
# Methods that make bytes: no prompt needs bytes, and the methods of bytes are not checked.
_MAKE_BYTES = ("encode", "to_bytes")
_CONTAINERS = (list, tuple, dict, set, frozenset)


class TemplateLimitError(Exception):
    """A template exceeded its time or size limit."""


class _Budget(threading.local):
    """Resources used by the template that runs in this thread."""

    deadline: float | None = None
    total = 0
    rounds = 0

    def start(self) -> None:
        self.deadline, self.total, self.rounds = time.thread_time() + CPU_SECONDS, 0, 0

    def check_time(self) -> None:
        if self.deadline is not None and time.thread_time() > self.deadline:
            raise TemplateLimitError(f"it took more than {CPU_SECONDS:.0f} seconds")

    def spend(self, size: int) -> None:
        self.total += size
        if size > LARGEST_VALUE or self.total > LARGEST_TOTAL:
            raise TemplateLimitError("it makes too much text or too long lists")

    def round(self) -> None:
        self.rounds += 1
        if self.rounds > MOST_ROUNDS:
            raise TemplateLimitError(f"its loops have more than {MOST_ROUNDS:,} rounds")
        if self.rounds % ROUNDS_A_CHECK == 0:
            self.check_time()


_BUDGET = _Budget()


def size_of(value: Any) -> int:
    """Counts the characters and items of a value and everything in it; repeated objects count each time.

    Raises:
        TemplateLimitError: the count exceeds `LARGEST_VALUE`, or the items exceed `MOST_ITEMS`.
    """
    size = 1
    if isinstance(value, str):
        size = len(value)
    elif isinstance(value, int) and value.bit_length() > LARGEST_BITS:
        raise TemplateLimitError("it makes too large a number")
    elif isinstance(value, _CONTAINERS):
        size = _size_of_items(value)
    _too_large(size)
    return size


def _size_of_items(value: Any) -> int:
    size = items = 0
    containers = [value]
    while containers:
        container = containers.pop()
        items += len(container)
        if items > MOST_ITEMS:
            raise TemplateLimitError(f"it makes lists of more than {MOST_ITEMS:,} items")
        for item in (*container, *container.values()) if isinstance(container, dict) else container:
            if isinstance(item, str):
                size += len(item)
            elif isinstance(item, _CONTAINERS):
                containers.append(item)
    return size + items


def _checked(value: Any) -> Any:
    """Returns the value if it is within the limits."""
    _BUDGET.check_time()
    size_of(value)
    return value


def _made(value: Any) -> Any:
    """Counts a value that a template made against the limits, and returns it."""
    _BUDGET.check_time()
    _BUDGET.spend(size_of(value))
    return value


class _Watched:
    """An iterable of a loop that counts its rounds."""

    def __init__(self, items: Iterable[Any]):
        self._items = items

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            _BUDGET.round()
            yield item

    def __len__(self) -> int:
        return len(self._items)  # type: ignore[arg-type]


def _joined(values: Iterable[Any]) -> str:
    """Implements the operator ~."""
    texts = [str(_checked(value)) for value in values]
    _BUDGET.spend(sum(map(len, texts)))
    return "".join(texts)


def _concat(chunks: Iterable[str]) -> str:
    """Concatenates the output of a block, a macro or a template."""
    found, size = [], 0
    for chunk in chunks:
        found.append(chunk)
        size += len(chunk)
        if size > LARGEST_VALUE:
            raise TemplateLimitError("it makes too much text")
        if len(found) % ROUNDS_A_CHECK == 0:
            _BUDGET.check_time()
    _BUDGET.spend(size)
    return "".join(found)


def _check_arguments(arguments: Iterable[Any]) -> None:
    for argument in arguments:
        size_of(argument)
        if isinstance(argument, int) and abs(argument) > LARGEST_ARGUMENT:
            raise TemplateLimitError(f"it asks for a width or count of more than {LARGEST_ARGUMENT:,}")


# Filters and methods that insert an argument, or that many spaces, repeatedly: at each occurrence of this text, or
# anywhere if None.
_REPEATED: Mapping[str, str | None] = {"wordwrap": None, "translate": None, "indent": "\n", "expandtabs": "\t"}


def _check_growth(name: str, value: Any, arguments: list[Any]) -> None:
    """Raises if a text filter or method would make too large a value, before it runs."""
    if not isinstance(value, str):
        return
    texts = [argument for argument in arguments if isinstance(argument, str)]
    if name == "replace" and len(texts) >= 2:
        _too_large((value.count(texts[0]) if texts[0] else len(value) + 1) * len(texts[1]))
    elif name in _REPEATED:
        sizes = [argument if isinstance(argument, int) else size_of(argument) for argument in arguments]
        mark = _REPEATED[name]
        times = len(value) if mark is None else value.count(mark) + 1
        _too_large(len(value) + times * max([1, *map(abs, sizes)]))
    elif name in ("format", "format_map") and (_WIDE_FORMAT.search(value) or _WIDE_PERCENT.search(value)):
        raise TemplateLimitError("it formats with a width that is too large or not written out")


def _too_large(size: int) -> None:
    if size > LARGEST_VALUE:
        raise TemplateLimitError("it makes too much text")


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a filter so that its value, arguments and result are checked against the limits."""
    # Filters that take the environment or the context receive it as their first argument.
    first = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)
    def guarded(*arguments: Any, **named: Any) -> Any:
        _BUDGET.check_time()
        before, rest = arguments[:first], list(arguments[first:])
        if rest and isinstance(rest[0], Iterator):
            rest[0] = list(_Watched(rest[0]))
        given = [*rest[1:], *named.values()]
        if rest:
            size_of(rest[0])
        _check_arguments(given)
        if rest:
            _check_growth(name, rest[0], given)
        if name in ("join", "sum") and rest:
            parts = list(rest[0]) if isinstance(rest[0], Iterable) else []
            between = size_of(given[0]) if given and isinstance(given[0], str) else 0
            _too_large(sum(size_of(part) + between for part in parts))
        result = function(*before, *rest, **named)
        return result if isinstance(result, Iterator) else _made(result)

    return guarded


def make_environment(**options: Any) -> Environment:
    """Makes a sandboxed environment with limits; `options` as for jinja2.Environment."""
    from jinja2 import nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

    class Sandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])
        concat = staticmethod(_concat)

        def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
            # Jinja's default returns an undefined value for a forbidden attribute, which renders as nothing.
            raise SecurityError(f"a template may not read {attribute!r} of a {type(obj).__name__}")

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            _check_operands(operator, left, right)
            return _made(super().call_binop(context, operator, left, right))

        def call(self, context: Any, obj: Any, /, *arguments: Any, **named: Any) -> Any:  # noqa: N805
            _BUDGET.check_time()
            # Jinja wraps str.format in its own function.
            owner = getattr(getattr(obj, "__wrapped__", obj), "__self__", None)
            name = getattr(obj, "__name__", "")
            if name in _MAKE_BYTES:
                raise SecurityError(f"a template may not call {name}")
            if isinstance(owner, (str, int, float)):
                listed = [list(_Watched(item)) if isinstance(item, Iterator) else item for item in arguments]
                given = [*listed, *named.values()]
                _check_arguments(given)
                _check_growth(name, owner, given)
                if name == "join" and given and isinstance(given[0], Iterable):
                    _too_large(sum(size_of(part) + size_of(owner) for part in given[0]))
                arguments = tuple(listed)
            result = super().call(context, obj, *arguments, **named)
            return _made(result) if isinstance(result, (str, *_CONTAINERS)) else result

        def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
            if len(source) > LARGEST_SOURCE:
                raise TemplateLimitError(f"it has more than {LARGEST_SOURCE:,} characters")
            tree = super()._parse(source, name, filename)
            _watch(tree)
            tree.set_environment(self)
            return tree

    def through(node: Any, name: str) -> Any:
        return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)

    def _watch(node: Any) -> None:
        """Routes loop iterables, compared values, slices and concatenations through our own filters."""
        for child in node.iter_child_nodes():
            _watch(child)
        if isinstance(node, nodes.For):
            node.iter = through(node.iter, "watched")
        elif isinstance(node, nodes.Compare):
            node.expr = through(node.expr, "checked")
            for operand in node.ops:
                operand.expr = through(operand.expr, "checked")
        for name, value in list(node.iter_fields()):
            if isinstance(value, list):
                setattr(node, name, [replaced(item) for item in value])
            elif isinstance(value, nodes.Node):
                setattr(node, name, replaced(value))

    def replaced(item: Any) -> Any:
        if isinstance(item, nodes.Concat):
            return through(nodes.List(item.nodes, lineno=item.lineno), "joined")
        if isinstance(item, nodes.Getitem) and isinstance(item.arg, nodes.Slice):
            return through(item, "made")
        return item

    environment = Sandbox(finalize=_checked, **options)
    environment.filters = {name: _guarded(name, function) for name, function in environment.filters.items()}
    environment.filters |= {"watched": _Watched, "checked": _checked, "joined": _joined, "made": _made}
    # lipsum generates placeholder text of any length.
    environment.globals.pop("lipsum", None)
    return environment


def add_filter(environment: Environment, name: str, function: Callable[..., Any]) -> None:
    """Adds a filter with limits to an environment."""
    environment.filters[name] = _guarded(name, function)


def _check_operands(operator: str, left: Any, right: Any) -> None:
    size_left, size_right = size_of(left), size_of(right)
    if operator == "+" and isinstance(left, (str, list, tuple)):
        _too_large(size_left + size_right)
    elif operator == "*":
        for value, times in ((left, right), (right, left)):
            if isinstance(value, (str, list, tuple)) and isinstance(times, int):
                _too_large(size_of(value) * max(times, 0))
    elif operator == "%" and isinstance(left, str):
        if _WIDE_PERCENT.search(left):
            raise TemplateLimitError("it formats with a width that is too large or not written out")
        _too_large(size_left + size_right * max(1, left.count("%")))
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        _too_large(left.bit_length() * max(right, 0) * (LARGEST_VALUE // LARGEST_BITS))


def render(template: Template, variables: Mapping[str, Any]) -> str:
    """Renders a template.

    Raises:
        TemplateLimitError: the template exceeds its time or size limit.
    """
    outer = (_BUDGET.deadline, _BUDGET.total, _BUDGET.rounds)
    _BUDGET.start()
    try:
        return template.render(variables)
    finally:
        _BUDGET.deadline, _BUDGET.total, _BUDGET.rounds = outer
