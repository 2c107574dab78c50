"""The commands of a chat. Each command is a row of `COMMANDS`.

Knows conversations and settings; leaves display to the terminal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from inference.config.generation import GenerationConfig
from inference.config.overrides import parse_value
from inference.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from inference.chat.chat import Chat


@dataclass(frozen=True)
class Command:
    """A command.

    Args:
        argument: the argument's name, for the help; empty if there is none.
        act: runs the command; returns a line to show, or an empty string.
    """

    name: str
    argument: str
    help: str
    act: Callable[[Chat, str], str]


def _reset(chat: Chat, argument: str) -> str:
    chat.conversation.messages.clear()
    return "the conversation is empty"


def _system(chat: Chat, argument: str) -> str:
    if argument:
        chat.conversation.system = argument
    return f"system prompt: {chat.conversation.system or '(none)'}"


def _save(chat: Chat, argument: str) -> str:
    path = _path(argument)
    chat.conversation.save(path)
    return f"saved to {path}"


def _load(chat: Chat, argument: str) -> str:
    chat.conversation = chat.conversation.load(_path(argument))
    return f"loaded {len(chat.conversation.messages)} messages"


def _path(argument: str) -> Path:
    if not argument:
        raise InputError("the file is missing", "such as /save talk.json")
    return Path(argument).expanduser()


def _set(chat: Chat, argument: str) -> str:
    """Changes a setting; without an argument, lists the settings."""
    settings = chat.conversation.settings
    if not argument:
        return ", ".join(f"{name} {value}" for name, value in settings.items()) or "nothing is set"
    name, _, value = argument.partition(" ")
    if name not in GenerationConfig.model_fields:
        raise InputError(f"unknown setting '{name}'", did_you_mean(name, GenerationConfig.model_fields))
    if not value.strip():
        settings.pop(name, None)
        return f"{name} is the model's own again"
    changed = {name: parse_value(value.strip())}
    chat.base.updated(**changed)
    settings.update(changed)
    return f"{name} {settings[name]}"


def _regenerate(chat: Chat, argument: str) -> str:
    question = chat.conversation.take_back()
    if question is None:
        raise InputError("there is no answer to regenerate")
    chat.ask(question)
    return ""


def _stats(chat: Chat, argument: str) -> str:
    return chat.figures() or "there is no answer yet"


def _help(chat: Chat, argument: str) -> str:
    width = max(len(f"/{row.name} {row.argument}") for row in COMMANDS)
    lines = [f"{f'/{row.name} {row.argument}':{width}}  {row.help}" for row in COMMANDS]
    keys = 'Ctrl-C stops an answer, Ctrl-D ends the chat; """ begins and ends a text of several lines.'
    return "\n".join([*lines, keys])


COMMANDS = (
    Command("reset", "", "Forget the conversation; system prompt and settings stay.", _reset),
    Command("system", "TEXT", "Set the system prompt, or show it.", _system),
    Command("set", "NAME VALUE", "Change a setting, such as temperature 0.7; without a value, undo that.", _set),
    Command("regen", "", "Answer the last question again.", _regenerate),
    Command("save", "FILE", "Save the conversation.", _save),
    Command("load", "FILE", "Load a conversation.", _load),
    Command("stats", "", "Show the figures of the last answer.", _stats),
    Command("help", "", "Show this.", _help),
)


def run_command(chat: Chat, line: str) -> str:
    """Runs a line that begins with /.

    Raises:
        InputError: there is no such command, or it fails.
    """
    name, _, argument = line.removeprefix("/").partition(" ")
    found = next((row for row in COMMANDS if row.name == name), None)
    if found is None:
        names = [row.name for row in COMMANDS]
        raise InputError(f"there is no /{name}", did_you_mean(name, names) or "/help lists the commands")
    return found.act(chat, argument.strip())
