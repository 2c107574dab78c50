"""A conversation: messages, system prompt and settings, and the file that stores them.

Knows chats; knows nothing about models or terminals.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inference.errors import InputError


@dataclass
class Conversation:
    """The conversation so far.

    Args:
        system: the system prompt; None for none.
        settings: generation settings changed by `/set`.
    """

    system: str | None = None
    messages: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    def prompt(self) -> dict[str, Any]:
        """Returns the prompt of the next answer, in the format of a row."""
        head = [{"role": "system", "content": self.system}] if self.system else []
        return {"messages": [*head, *self.messages], **self.settings}

    def say(self, role: str, content: str) -> None:
        """Adds a message."""
        self.messages.append({"role": role, "content": content})

    def take_back(self) -> str | None:
        """Removes the last question and its answer; returns the question, or None if there is none."""
        while self.messages:
            message = self.messages.pop()
            if message["role"] == "user":
                return str(message["content"])
        return None

    def save(self, path: Path) -> None:
        """Saves the conversation to a file.

        Raises:
            InputError: the file cannot be written.
        """
        value = {"system": self.system, "messages": self.messages, "settings": self.settings}
        try:
            path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(f"{path} cannot be written ({error.strerror})") from None

    @classmethod
    def load(cls, path: Path) -> Conversation:
        """Loads a conversation written by `save`.

        Raises:
            InputError: the file cannot be read, or is not a conversation.
        """
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror})") from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is not JSON ({error})") from None
        if not _is_conversation(value):
            raise InputError(f"{path} is not a saved conversation", "a file that /save wrote")
        return cls(value.get("system"), list(value["messages"]), dict(value.get("settings") or {}))


def _is_conversation(value: Any) -> bool:
    messages = value.get("messages") if isinstance(value, Mapping) else None
    if not isinstance(messages, list) or not isinstance(value.get("settings") or {}, Mapping):
        return False
    return isinstance(value.get("system"), (str, type(None))) and all(
        isinstance(message, Mapping)
        and isinstance(message.get("role"), str)
        and isinstance(message.get("content"), str)
        for message in messages
    )
