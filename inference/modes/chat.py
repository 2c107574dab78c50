"""`--run_mode chat`: a chat at a terminal, or line by line through a pipe."""

from __future__ import annotations

import importlib.util
import sys
from contextlib import closing
from pathlib import Path

from inference.api.backend import choose_model_class
from inference.context import build_context
from inference.errors import EXIT_ROWS_FAILED, ConfigError
from inference.modes.call import Call
from inference.modes.check import check_run, prepare, say_what_is_used
from inference.terminal.output import load_progress, say
from inference.terminal.signals import interrupts


def check(call: Call) -> str:
    return check_run(call)


def run(call: Call) -> int:
    """Chats until the input ends.

    Returns:
        The exit code: 0, or 3 if a turn has no answer.
    """
    from inference.chat.chat import Chat
    from inference.chat.commands import COMMANDS
    from inference.chat.screen import piped_lines, read_turns, typed_lines

    config = call.config
    typed = sys.stdin.isatty() and sys.stdout.isatty()
    if typed and importlib.util.find_spec("prompt_toolkit") is None:
        raise ConfigError("run_mode chat needs prompt_toolkit", "pip install 'mindspore-inference[chat]'")
    ready = prepare(call, None)
    settings = config.chat
    say_what_is_used(ready)
    build_context(config)
    model = choose_model_class(config)(ready.source, ready.pairs, progress=load_progress(ready.pairs), say=say)
    with closing(model):
        session = Chat(
            model,
            ready.tokenizer,
            ready.encoder,
            say,
            system=settings.system,
            history=Path(settings.history_file) if settings.history_file else None,
            dims=typed,
            stats=settings.stats,
        )
        if typed:
            say(f"{ready.source.name}: /help lists the commands, Ctrl-D ends")
        lines = typed_lines([row.name for row in COMMANDS]) if typed else piped_lines()
        with interrupts(session.interrupt):
            session.run(read_turns(lines))
    return EXIT_ROWS_FAILED if session.failed and not typed else 0
