"""Styles that tell answers, prompts, figures and errors apart on a terminal.

Knows when a stream takes styles: a terminal, unless the environment says NO_COLOR (no-color.org) or TERM=dumb. In a
pipe or a file, text stays as it is.
"""

from __future__ import annotations

import os
from typing import Any, TextIO


def styled(text: str, stream: TextIO, **style: Any) -> str:
    """Returns the text in one of click's styles if the stream shows styles, else unchanged."""
    if not takes_styles(stream):
        return text
    import click

    return click.style(text, **style)


def takes_styles(stream: TextIO) -> bool:
    """Returns whether a stream shows styles."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
