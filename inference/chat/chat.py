"""The chat loop: reads a turn, then runs it if it is a command, or answers it.

Knows conversations, turns and their display; knows nothing about configs.
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
        encoder: encodes prompts; holds the settings that `/set` changes.
        show: displays a line to the user that is not part of an answer.
        history: the file that the conversation is loaded from and saved to, if any.
        dims: show the model's thinking dimmed.
        stats: show statistics after each answer.

    Attributes:
        failed: number of turns without an answer.
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
        """Answers turns until the input ends."""
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
        """Answers a question, and streams the answer to the screen.

        Raises:
            InferenceError: the question cannot be answered; it is removed from the conversation.
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
        """Stops the answer in progress, from any thread; returns whether there was one."""
        turn = self._turn
        if not self._is_running or turn is None:
            return False
        turn.stop()
        return True

    def figures(self) -> str:
        """Returns statistics of the last answer; empty before the first answer."""
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
