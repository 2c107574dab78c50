"""Rows of input from arguments, standard input, and files of several formats.

Everything is read as a stream, and an invalid row is detected when its turn comes. Knows nothing about tokenizers or
models.
"""

from inference.inputs.rows import Row, RowStream, no_prompt, open_rows

__all__ = ["Row", "RowStream", "no_prompt", "open_rows"]
