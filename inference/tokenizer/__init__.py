"""Converts text to token ids and back: sentencepiece, tokenizer.json, chat templates, streaming.

Knows nothing about models, MindSpore or prompt files. sentencepiece, tokenizers and jinja2 are imported when a
tokenizer is loaded or a template is used, so importing this package is cheap.
"""

from __future__ import annotations

from inference.tokenizer.base import Tokenizer
from inference.tokenizer.detokenizer import IncrementalDetokenizer
from inference.tokenizer.joining import Joining
from inference.tokenizer.load import load_tokenizer

__all__ = ["IncrementalDetokenizer", "Joining", "Tokenizer", "load_tokenizer"]
