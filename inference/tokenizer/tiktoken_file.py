"""Vocabularies in tiktoken's format (`tokenizer.model` of GLM-4 9B): per line, a token's bytes in base64 and its rank.

A regular expression splits the text. In each part, the adjacent pair whose joined bytes have the lowest rank is merged,
until no pair forms a token (github.com/openai/tiktoken, README). The equivalent merges of byte-level BPE are all ways
to split a token into two tokens, in the order of the tokens' ranks.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from inference.errors import TokenizerError
from inference.tokenizer.added_token import AddedToken
from inference.tokenizer.bpe import bpe_backend
from inference.tokenizer.json_tokenizer import SPELLING, JsonTokenizer
from inference.tokenizer.pre_tokenizers import PreTokenizer
from inference.tokenizer.tokenizer_config import TokenizerConfig

_LINE = re.compile(rb"([A-Za-z0-9+/=]+) (\d+)\r?\n?")


def is_tiktoken(path: Path) -> bool:
    """Returns whether a file's first line is a token and its rank."""
    with path.open("rb") as file:
        return _LINE.match(file.read(256)) is not None


def read_tiktoken(
    path: Path, config: TokenizerConfig, splitting: PreTokenizer, special: Sequence[str]
) -> JsonTokenizer:
    """Reads the tokenizer in a file.

    Args:
        splitting: how to split a text; the file does not contain this.
        special: tokens whose ids follow the ranks, if the config has none.

    Raises:
        TokenizerError: the file cannot be read, a line is malformed, or the ids of the config's tokens do not follow
            the ranks.
    """
    try:
        lines = path.read_bytes().splitlines()
        found = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}
    except OSError as error:
        raise TokenizerError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise TokenizerError(f"{path} is damaged ({error})", "fetch the file again") from error
    vocabulary = {_spelled(token): rank for token, rank in found.items()}
    if sorted(found.values()) != list(range(len(found))):
        raise TokenizerError(f"{path} is damaged: its ranks are not 0 to {len(found) - 1}", "fetch the file again")
    usual = {len(found) + index: AddedToken(token, special=True) for index, token in enumerate(special)}
    config = replace(config, added=config.added or usual)
    backend = bpe_backend(vocabulary, _merges(found), path, splitting)
    tokenizer = JsonTokenizer(backend, config, path)
    for token_id, token in config.added.items():
        if tokenizer.token_to_id(token.content) != token_id:
            raise TokenizerError(
                f"{path} has {len(found)} tokens, and {token.content} is to be {token_id}",
                "added_tokens_decoder is another model's",
            )
    return tokenizer


def _spelled(token: bytes) -> str:
    return "".join(SPELLING[byte] for byte in token)


def _merges(ranks: dict[bytes, int]) -> Iterator[tuple[str, str]]:
    for token in sorted(ranks, key=lambda token: ranks[token]):
        ways = [(token[:at], token[at:]) for at in range(1, len(token))]
        known = [(left, right) for left, right in ways if left in ranks and right in ranks]
        for left, right in sorted(known, key=lambda pair: (ranks[pair[0]], ranks[pair[1]])):
            yield _spelled(left), _spelled(right)
