"""The loop of a chat: a turn is read, done if it is a command, and answered otherwise.

Knows conversations, turns and how they are shown; knows nothing about configs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from inference.chat.commands import run_command
from inference.chat.conversation import Conversation
from inference.chat.screen import AnswerPrinter
from inference.chat.turn import Turn
from inference.errors import InferenceError
from inference.generation.model import GenerativeModel
from inference.generation.text import Encoder
from inference.inputs.prompts import prompt_from_mapping
from inference.tokenizer import Tokenizer


class Chat:
    """A chat with a model.

    Args:
        encoder: with the settings that `/set` changes.
        show: takes lines for the person, which are no answers.
        history: the file that the conversation is read from and kept in, if any.
        dims: what the model thinks is shown dim.
        stats: show figures after each answer.

    Attributes:
        failed: turns without an answer.
    """

    def __init__(
        self,
        model: GenerativeModel,
        tokenizer: Tokenizer,
        encoder: Encoder,
        show: Callable[[str], None],
        *,
        system: str | None = None,
        history: Path | None = None,
        dims: bool = False,
        stats: bool = False,
    ):
        self._model, self._tokenizer, self._encoder, self._show = model, tokenizer, encoder, show
        self._history, self._dims, self._stats = history, dims, stats
        self.base = encoder.generation
        known = history is not None and history.exists()
        self.conversation = Conversation.load(history) if history is not None and known else Conversation()
        self.conversation.system = system or self.conversation.system
        self.failed = 0
        self._turn: Turn | None = None
        self._is_running = False

    def run(self, turns: Iterable[str]) -> None:
        """Answers turns until there are no more."""
        for turn in turns:
            try:
                if turn.startswith("/"):
                    line = run_command(self, turn)
                    if line:
                        self._show(line)
                else:
                    self.ask(turn)
            except InferenceError as error:
                self.failed += 1
                self._show(f"error: {error}")

    def ask(self, text: str) -> None:
        """Answers a question; the answer appears as it comes.

        Raises:
            InferenceError: it cannot be answered; it is forgotten.
        """
        self.conversation.say("user", text)
        try:
            prompt = prompt_from_mapping(self.conversation.prompt(), "the conversation", "chat")
            turn = self._turn = Turn(self._model, self._tokenizer, self._encoder.encode(0, prompt))
            printer = AnswerPrinter(sys.stdout, self._dims)
            self._is_running = True
            for piece in turn:
                printer.write(piece)
            printer.end()
        except InferenceError:
            self.conversation.messages.pop()
            raise
        finally:
            self._is_running = False
        self.conversation.say("assistant", turn.text)
        if self._stats:
            self._show(self.figures())
        if self._history is not None:
            self.conversation.save(self._history)

    def interrupt(self) -> bool:
        """Stops the answer under way, from any thread; whether there was one."""
        turn = self._turn
        if not self._is_running or turn is None:
            return False
        turn.stop()
        return True

    def figures(self) -> str:
        """What the last answer cost; nothing before the first."""
        if self._turn is None:
            return ""
        request = self._turn.request
        count, timing = len(request.output_ids), request.timing
        rate = ""
        if timing.ttft is not None and timing.total is not None and count > 1:
            rate = (
                f", {(count - 1) / max(timing.total - timing.ttft, 1e-9):,.1f} tok/s, TTFT {timing.ttft * 1000:.0f} ms"
            )
        reused = f" ({request.num_reused} from the cache)" if request.num_reused else ""
        return f"{request.num_prompt_tokens} tokens in{reused}, {count} out{rate}"
