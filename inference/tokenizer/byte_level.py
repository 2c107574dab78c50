"""Byte-level BPE, as the tokenizers package has it, out of tokens and merges."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from inference.errors import TokenizerError

_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CUT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|" + _WORDS
# How a text is cut before: numbers in threes, as Llama 3, Phi-4 and GLM-4 do, or digit by digit, as Qwen does.
THREES, DIGITS = _CUT % r"\p{N}{1,3}", _CUT % r"\p{N}"


def byte_level_backend(
    vocabulary: Mapping[str, int],
    merges: Iterable[tuple[str, str]],
    path: Path,
    *,
    cut: str | None,
    normalized: bool = False,
    whole_words: bool = False,
) -> Any:
    """A `tokenizers.Tokenizer`.

    Args:
        vocabulary: tokens, spelled as GPT-2 spells bytes, and their ids.
        path: for messages.
        cut: a regular expression for the parts of a text; None for GPT-2's own.
        normalized: texts are brought into NFC.
        whole_words: a part that is a token is taken without merges.

    Raises:
        TokenizerError: the merges do not fit the tokens.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    try:
        backend = Tokenizer(models.BPE(vocab=dict(vocabulary), merges=list(merges), ignore_merges=whole_words))
    except Exception as error:  # the package raises plain Exception
        raise TokenizerError(f"{path}: the merges do not fit the tokens ({error})") from error
    if normalized:
        backend.normalizer = normalizers.NFC()
    by_byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut is None)
    if cut is None:
        backend.pre_tokenizer = by_byte
    else:
        words = pre_tokenizers.Split(Regex(cut), behavior="isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([words, by_byte])
    backend.decoder = decoders.ByteLevel()
    return backend
