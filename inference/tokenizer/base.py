"""The interface of all tokenizers; knows nothing about files, models or MindSpore.

Names and defaults follow the Hugging Face and MindFormers tokenizers, as far as inference needs them. A new kind of
tokenizer implements five small methods: `encode_text`, `token_bytes`, `id_to_token`, `token_to_id` and `vocab_size`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from inference.errors import InputError, TokenizerError
from inference.tokenizer.chat import choose_template, end_with_message, render_chat
from inference.tokenizer.joining import Joining
from inference.tokenizer.tokenizer_config import TOKEN_NAMES, TokenizerConfig

PADDINGS = (False, True, "longest", "max_length", "do_not_pad")


class Tokenizer(ABC):
    """Converts text to token ids and back.

    Args:
        config: special tokens, chat templates and flags.
        joining: how to turn the bytes of tokens into text.
    """

    def __init__(self, config: TokenizerConfig | None = None, joining: Joining | None = None):
        self.config = config or TokenizerConfig()
        self.joining = joining or Joining()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.vocab_size} tokens)"

    # Implemented by each kind of tokenizer.

    @abstractmethod
    def encode_text(self, text: str, allow_special: bool = True) -> list[int]:
        """Encodes `text` without adding tokens. If not `allow_special`, special tokens in it are plain characters."""

    @abstractmethod
    def token_bytes(self, token_id: int) -> bytes:
        """Returns the bytes of a token; empty for an id outside the vocabulary. O(1)."""

    @abstractmethod
    def id_to_token(self, token_id: int) -> str | None:
        """Returns the token as spelled in the vocabulary; None for an id outside the vocabulary."""

    @abstractmethod
    def token_to_id(self, token: str) -> int | None:
        """Returns the id of a token spelled as in the vocabulary, or None if there is none."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Size of the vocabulary without added tokens; `len(tokenizer)` includes them."""

    def __len__(self) -> int:
        return self.vocab_size

    def __bool__(self) -> bool:
        return True

    def default_prefix(self) -> list[int]:
        """Ids placed before every text by default."""
        return []

    def default_suffix(self) -> list[int]:
        """Ids placed after every text by default."""
        return []

    def special_ids(self) -> Iterable[int]:
        """Ids that the vocabulary itself marks as special, in addition to those in the config."""
        return ()

    # Special tokens.

    @property
    def bos_token(self) -> str | None:
        return self.config.tokens.get("bos_token")

    @property
    def eos_token(self) -> str | None:
        return self.config.tokens.get("eos_token")

    @property
    def pad_token(self) -> str | None:
        return self.config.tokens.get("pad_token")

    @property
    def unk_token(self) -> str | None:
        return self.config.tokens.get("unk_token")

    @property
    def bos_token_id(self) -> int | None:
        return self._id_of(self.bos_token)

    @property
    def eos_token_id(self) -> int | None:
        return self._id_of(self.eos_token)

    @property
    def pad_token_id(self) -> int | None:
        return self._id_of(self.pad_token)

    @property
    def unk_token_id(self) -> int | None:
        return self._id_of(self.unk_token)

    def _id_of(self, token: str | None) -> int | None:
        return None if token is None else self.token_to_id(token)

    @cached_property
    def all_special_ids(self) -> frozenset[int]:
        """Ids that `skip_special_tokens` skips."""
        named = {self.token_to_id(content) for content in self.config.special_contents}
        return frozenset({token_id for token_id in named if token_id is not None} | set(self.special_ids()))

    @property
    def all_special_tokens(self) -> list[str]:
        return [self.id_to_token(token_id) or "" for token_id in sorted(self.all_special_ids)]

    @property
    def chat_template(self) -> str | None:
        """The default chat template, or None."""
        return self.config.chat_templates.get("default")

    # Text to ids.

    def encode(self, text: str, add_special_tokens: bool = True, *, allow_special: bool = True) -> list[int]:
        """Encodes `text` as token ids.

        Args:
            text: any text.
            add_special_tokens: add the tokens that the model expects around a text, such as bos.
            allow_special: parse special tokens spelled out in the text, as Hugging Face does. Pass False for
                untrusted text, so that `<|im_end|>` in it is encoded as plain characters.

        Raises:
            InputError: `text` is not a string, or is not valid Unicode (contains a lone surrogate).
        """
        check_text(text)
        ids = self.encode_text(text, allow_special)
        return [*self._prefix, *ids, *self._suffix] if add_special_tokens else ids

    def tokenize(self, text: str, add_special_tokens: bool = False) -> list[str]:
        """Splits `text` into tokens, spelled as in the vocabulary."""
        return [self.id_to_token(token_id) or "" for token_id in self.encode(text, add_special_tokens)]

    @cached_property
    def _prefix(self) -> list[int]:
        for tokens in self.config.prefixes or ():
            ids = [self.token_to_id(token) for token in tokens]
            if None not in ids:
                return [token_id for token_id in ids if token_id is not None]
        if self.config.prefixes:
            named = " or ".join(" ".join(tokens) for tokens in self.config.prefixes)
            raise TokenizerError(f"the tokenizer has no {named}, which its texts begin with", "set prefix_tokens")
        return self._around(self.config.add_bos_token, "bos_token", self.default_prefix())

    @cached_property
    def _suffix(self) -> list[int]:
        return self._around(self.config.add_eos_token, "eos_token", self.default_suffix())

    def _around(self, asked: bool | None, name: str, default: list[int]) -> list[int]:
        if asked is None:
            return default
        token_id = self._id_of(self.config.tokens.get(name))
        if asked and token_id is None:
            raise TokenizerError(f"add_{name} is true but the tokenizer has no {name}", f"set {name}")
        return [token_id] if asked and token_id is not None else []

    # Ids to text.

    def decode(self, token_ids: Any, skip_special_tokens: bool = True) -> Any:
        """Decodes `token_ids` (one id, a list or an array) to a text, and rows of ids to a list of texts; skips ids
        outside the vocabulary.

        Invalid UTF-8 becomes U+FFFD. Valid characters in a run of byte tokens are kept, as in sentencepiece; the
        tokenizers package replaces the whole run.
        """
        given = _listed_ids(token_ids)
        # An array without dimensions is a number.
        if given and isinstance(given[0], Iterable) and getattr(given[0], "ndim", None) != 0:
            return [self.decode(row, skip_special_tokens) for row in given]
        ids = [int(token) for token in given]
        skipped = self.all_special_ids if skip_special_tokens else frozenset()
        chunks = [self.token_bytes(token_id) for token_id in ids if token_id not in skipped]
        return self.joining.text([chunk for chunk in chunks if chunk])

    def batch_decode(self, sequences: Iterable[Iterable[int]], skip_special_tokens: bool = True) -> list[str]:
        """Decodes each row."""
        return [self.decode(ids, skip_special_tokens) for ids in sequences]

    def convert_ids_to_tokens(self, ids: int | Iterable[int]) -> str | None | list[str | None]:
        """Converts one id or several to tokens spelled as in the vocabulary; None for an id outside it."""
        if isinstance(ids, Iterable):
            return [self.id_to_token(int(i)) for i in ids]
        return self.id_to_token(int(ids))

    def convert_tokens_to_ids(self, tokens: str | Iterable[str]) -> int | None | list[int | None]:
        """Converts one token or several to ids; an unknown token gets the id of unk_token, or None without one."""
        if not isinstance(tokens, str):
            return [self._id_or_unk(token) for token in tokens]
        return self._id_or_unk(tokens)

    def _id_or_unk(self, token: str) -> int | None:
        token_id = self.token_to_id(token)
        return self.unk_token_id if token_id is None else token_id

    # Batches.

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
    ) -> dict[str, Any]:
        """Returns `input_ids` and `attention_mask` (1 for a token, 0 for padding) of one text or several.

        Args:
            text: one text gives flat lists; several give lists of lists.
            add_special_tokens: as in `encode`.
            padding: False; True or `longest` to pad to the longest row; `max_length` to pad to `max_length`.
                The padding token is pad_token, else unk_token, else eos_token; the mask marks it.
            truncation: truncate rows to `max_length`, including special tokens.
            max_length: in tokens.
            return_tensors: None for lists; `np` for int32 arrays [rows, length].
        """
        _check_call(padding, truncation, max_length, return_tensors)
        texts = [text] if isinstance(text, str) else list(text)
        limit = max_length if truncation else None
        rows = [self._encode_within(one, add_special_tokens, limit) for one in texts]
        ids, mask = self._padded(rows, self._target(rows, padding, max_length))
        if return_tensors == "np":
            return {"input_ids": _array(ids), "attention_mask": _array(mask)}
        if isinstance(text, str):
            return {"input_ids": ids[0], "attention_mask": mask[0]}
        return {"input_ids": ids, "attention_mask": mask}

    def _encode_within(self, text: str, add_special_tokens: bool, limit: int | None) -> list[int]:
        """Encodes `text`, truncated at its end to at most `limit` tokens including special tokens."""
        ids = self.encode(text, add_special_tokens)
        if limit is None or len(ids) <= limit:
            return ids
        suffix = self._suffix if add_special_tokens else []
        return [*ids[: max(limit - len(suffix), 0)], *suffix][:limit]

    def _target(self, rows: list[list[int]], padding: bool | str, max_length: int | None) -> int:
        if padding == "max_length":
            return max_length or 0
        return max(map(len, rows), default=0) if padding in (True, "longest") else 0

    def _padded(self, rows: list[list[int]], length: int) -> tuple[list[list[int]], list[list[int]]]:
        ids, mask = [], []
        for row in rows:
            ones, count = [1] * len(row), max(length - len(row), 0)
            pad, zeros = [self._padding_id] * count if count else [], [0] * count
            left = self.config.padding_side == "left"
            ids.append(pad + row if left else row + pad)
            mask.append(zeros + ones if left else ones + zeros)
        return ids, mask

    @property
    def _padding_id(self) -> int:
        for token_id in (self.pad_token_id, self.unk_token_id, self.eos_token_id):
            if token_id is not None:
                return token_id
        raise TokenizerError("the tokenizer has no token to pad with", "set pad_token")

    # Chat.

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        tokenize: bool = True,
        add_generation_prompt: bool = True,
        *,
        chat_template: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str | list[int]:
        """Renders a chat as text or as ids.

        Args:
            messages: objects with `role` and `content`.
            tokenize: return ids instead of text. The template writes its own special tokens; none are added.
            add_generation_prompt: end with the header of the assistant's answer.
            chat_template: a template, or the name of one of the tokenizer's templates, to use instead of the default.
            tools: JSON schemas of functions, for templates that support tools.
            continue_final_message: end with the text of the last message so that the answer continues it.
            variables: any other variables of the template, such as `enable_thinking`.

        Raises:
            TokenizerError: there is no template, or it fails.
            InputError: the messages have the wrong form.
        """
        template = self.template_of(chat_template, bool(tools))
        special = {name: self.config.tokens[name] for name in TOKEN_NAMES if self.config.tokens.get(name)}
        text = render_chat(
            template,
            messages,
            {
                **special,
                "tools": tools or None,
                "add_generation_prompt": add_generation_prompt and not continue_final_message,
                **variables,
            },
        )
        if continue_final_message:
            text = end_with_message(text, messages[-1])
        return self.encode(text, add_special_tokens=False) if tokenize else text

    def template_of(self, given: str | None = None, has_tools: bool = False) -> str:
        """Returns the template that `apply_chat_template` uses.

        Args:
            given: a template, or the name of one of the tokenizer's templates.

        Raises:
            TokenizerError: there is no template.
        """
        if given is not None and given not in self.config.chat_templates:
            return given
        return choose_template(self.config.chat_templates, given, has_tools)


def check_text(text: Any) -> None:
    """Raises InputError for text that no tokenizer can encode."""
    if not isinstance(text, str):
        raise InputError(f"a prompt is {type(text).__name__}, not text")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = f"U+{ord(text[error.start]):04X}"
        raise InputError(f"the text holds half of a character ({code}) at position {error.start}") from error


def _listed_ids(token_ids: Any) -> list[Any]:
    """Lists ids, or rows of them: a number, a list, an array, or a tensor of MindSpore."""
    for method in ("asnumpy", "tolist"):
        if hasattr(token_ids, method):
            token_ids = getattr(token_ids, method)()
    return list(token_ids) if isinstance(token_ids, Iterable) else [token_ids]


def _check_call(padding: bool | str, truncation: bool, max_length: int | None, return_tensors: str | None) -> None:
    if padding not in PADDINGS:
        raise InputError(f"padding is {padding!r}", "it must be False, True, longest or max_length")
    if max_length is None and (truncation or padding == "max_length"):
        raise InputError("padding to max_length and truncation need max_length", "give it in tokens")
    if return_tensors not in (None, "np"):
        raise InputError(f"return_tensors is {return_tensors!r}", "it must be None or np")


def _array(rows: list[list[int]]) -> Any:
    import numpy as np

    if len({len(row) for row in rows}) > 1:
        raise InputError("rows of unequal length make no array", "give padding=True")
    return np.array(rows, np.int32)
