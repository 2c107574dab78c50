"""Rows of input, wherever they come from: arguments, standard input, and files of several formats.

Everything is read as a stream, and a row that makes no sense is found when it is its turn. Knows nothing about
tokenizers or models.
"""

from inference.inputs.rows import Row, RowStream, no_prompt, open_rows

__all__ = ["Row", "RowStream", "no_prompt", "open_rows"]
