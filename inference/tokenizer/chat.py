"""Renders chat messages as one text, with the model's own chat template.

A template is untrusted data from a model directory: it runs in Jinja's sandbox and sees only the messages and its
variables. The environment (white space, functions, filters) is the one that Hugging Face documents for chat templates.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

from inference.errors import InputError, TokenizerError
from inference.tokenizer.template_sandbox import add_filter, make_environment, render

if TYPE_CHECKING:
    from jinja2 import Environment, Template

# The tags around a model's reasoning before its answer (DeepSeek-R1, Qwen3 and others).
THINK, END_OF_THINK = "<think>", "</think>"
# Matches a template that distinguishes text content from a list of parts, or iterates over the parts.
_READS_PARTS = re.compile(
    r"content('\]|\"\])?\s+is\s+(not\s+)?(string|iterable|sequence)|in\s+\w+(\.content|\[.content.\])\s*[-+]?%}"
)


def choose_template(templates: Mapping[str, str], name: str | None, has_tools: bool) -> str:
    """Returns the template called `name`; without a name, `tool_use` if there are tools, else `default`.

    Raises:
        TokenizerError: there is no template of that name, or no template at all.
    """
    if not templates:
        hint = "give one as chat_template in the settings, or as chat_template.jinja beside the tokenizer"
        raise TokenizerError("this tokenizer has no chat template", hint)
    if name is None:
        name = "tool_use" if has_tools and "tool_use" in templates else "default"
    if name not in templates:
        raise TokenizerError(f"this tokenizer has no chat template '{name}'", f"it has: {', '.join(templates)}")
    return templates[name]


def render_chat(template: str, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> str:
    """Renders `messages`, each an object with a `role` and usually `content`.

    Raises:
        InputError: the messages do not have that form.
        TokenizerError: the template is invalid, rejects the messages, or does something that the sandbox forbids.
    """
    check_messages(messages)
    try:
        return render(_compiled(template), {"messages": _as_read(template, messages), **variables})
    # A template can raise any exception, including MemoryError and RecursionError.
    except Exception as error:
        raise TokenizerError(f"the chat template failed: {type(error).__name__}: {error}") from error


def _as_read(template: str, messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Prepares messages for the template: drops null content, and joins parts unless the template reads parts.

    A template would render the null content of a message with tool calls as the word "None".
    """
    reads_parts = _READS_PARTS.search(template) is not None
    found = []
    for message in messages:
        content = message.get("content")
        if "content" in message and content is None:
            message = {**message, "content": ""}
        elif isinstance(content, list) and not reads_parts:
            message = {**message, "content": "".join(part["text"] for part in content)}
        found.append(message)
    return found


def reads_tools(template: str) -> bool:
    """Returns whether a template shows tools to the model."""
    return re.search(r"\btools\b", template) is not None


def end_with_message(text: str, message: Mapping[str, Any]) -> str:
    """Cuts a rendered chat after the text of its last message.

    Raises:
        InputError: the last message has no text, or the template does not render it verbatim.
    """
    content = message.get("content")
    if isinstance(content, list):
        content = content[-1].get("text") if content else None
    if not isinstance(content, str) or not content.strip():
        raise InputError("continue_final_message needs a last message with text", "give the start of the answer")
    at = text.rfind(content)
    if at >= 0:
        return text[: at + len(content)]
    # Templates often strip white space from a message.
    at = text.rfind(content.strip())
    if at < 0:
        raise InputError("the chat template changes the last message, so that it cannot be continued")
    return text[: at + len(content.strip())]


def check_messages(messages: Any) -> None:
    """Raises InputError unless `messages` is a list of objects with a role."""
    form = 'messages are a list of objects such as {"role": "user", "content": "..."}'
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence) or not messages:
        raise InputError("the chat has no list of messages", form)
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InputError(f"message {index} of the chat has no role", form)


@lru_cache(maxsize=32)
def _compiled(template: str) -> Template:
    return _environment().from_string(template)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    import jinja2.ext
    from jinja2 import nodes

    class GenerationBlock(jinja2.ext.Extension):
        """`{% generation %}` marks the assistant's text for training; here it renders its content unchanged."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> nodes.Node | list[nodes.Node]:
            next(parser.stream)
            body: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return body

    environment = make_environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, GenerationBlock]
    )
    add_filter(environment, "tojson", _to_json)
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Serializes to JSON without HTML escapes, which Jinja's own tojson adds and a prompt must not have."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    from jinja2.exceptions import TemplateError

    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
