"""Byte pair encoding with the tokenizers package, built from tokens, merges and a pre-tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from inference.errors import TokenizerError
from inference.tokenizer.pre_tokenizers import PreTokenizer

SPACE = "\u2581"  # how sentencepiece spells a space


def bpe_backend(
    vocabulary: Mapping[str, int], merges: Iterable[tuple[str, str]], path: Path, splitting: PreTokenizer
) -> Any:
    """Builds a `tokenizers.Tokenizer`.

    Args:
        vocabulary: token ids by token, spelled as `splitting` specifies.
        path: named in error messages.
        splitting: how to split a text before the merges.

    Raises:
        TokenizerError: the merges do not match the tokens.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    try:
        model = models.BPE(
            vocab=dict(vocabulary),
            merges=list(merges),
            ignore_merges=splitting.whole_words,
            byte_fallback=not splitting.byte_level,
        )
    except Exception as error:  # the package raises plain Exception
        raise TokenizerError(f"{path}: the merges do not fit the tokens ({error})") from error
    backend = Tokenizer(model)
    steps: list[Any] = [pre_tokenizers.Split(Regex(stage), behavior="isolated") for stage in splitting.stages]
    if splitting.byte_level:
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
        backend.decoder = decoders.ByteLevel()
    else:
        spaces = [decoders.Replace(SPACE, " ")] if splitting.marks_spaces else []
        backend.decoder = decoders.Sequence([*spaces, decoders.ByteFallback(), decoders.Fuse()])
    if splitting.marks_spaces:
        backend.normalizer = normalizers.Replace(" ", SPACE)
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    return backend
