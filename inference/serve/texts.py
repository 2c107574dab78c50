"""Answers `/tokenize`, `/detokenize` and `/tokenizer_info`, in vLLM's formats.

Knows tokenizers; knows nothing about HTTP or the engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inference.errors import InputError
from inference.generation.text import EncodedPrompt
from inference.serve.bodies import CHAT, COMPLETIONS, read_prompt
from inference.serve.errors import RequestError
from inference.serve.service import Service

# Maximum number of ids in a request; each takes a few bytes of the body.
MOST_IDS = 1 << 20
OWN_KEYS = ("model", "add_special_tokens", "return_token_strs")


def tokenize(service: Service, body: Mapping[str, Any]) -> dict[str, Any]:
    """Encodes a prompt, or a chat rendered with its template.

    Raises:
        RequestError, InputError: the input cannot be encoded.
    """
    special, wants_texts = body.get("add_special_tokens", True), body.get("return_token_strs", False)
    if not isinstance(special, bool) or not isinstance(wants_texts, bool):
        raise RequestError(400, "add_special_tokens and return_token_strs must be true or false")
    rest = {
        key: value for key, value in body.items() if key not in ("model", "add_special_tokens", "return_token_strs")
    }
    if "messages" in rest:
        ids = encoded(service, rest, CHAT).ids
    elif isinstance(rest.get("prompt"), str) and rest.keys() == {"prompt"}:
        ids = service.tokenizer.encode(rest["prompt"], add_special_tokens=special)
    else:
        raise RequestError(400, "give 'prompt' (a text) or 'messages'", "prompt")
    answer: dict[str, Any] = {"count": len(ids), "max_model_len": service.model.config.context_length, "tokens": ids}
    if wants_texts:
        answer["token_strs"] = [service.tokenizer.id_to_token(token) for token in ids]
    return answer


def tokenizer_info(service: Service) -> dict[str, Any]:
    """Describes the tokenizer, under the names of Hugging Face's `tokenizer_config.json`."""
    tokenizer = service.tokenizer
    return {
        **{name: getattr(tokenizer, name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")},
        "chat_template": tokenizer.chat_template,
        "model_max_length": service.model.config.context_length,
    }


def encoded(service: Service, content: Mapping[str, Any], path: str = COMPLETIONS) -> EncodedPrompt:
    """Encodes a prompt."""
    return service.encoder.encode(0, read_prompt(content, path, "0"))


def detokenize(service: Service, body: Mapping[str, Any]) -> dict[str, Any]:
    """Decodes ids to text.

    Raises:
        RequestError, InputError: an id is outside the vocabulary.
    """
    ids = body.get("tokens")
    if not isinstance(ids, list) or not all(type(token) is int for token in ids) or len(ids) > MOST_IDS:
        raise RequestError(400, "tokens must be a list of token ids", "tokens")
    size = service.model.config.vocab_size
    outside = [token for token in ids if not 0 <= token < size]
    if outside:
        raise InputError(f"token id {outside[0]} is outside the vocabulary of {size}")
    return {"prompt": service.tokenizer.decode(ids, skip_special_tokens=False)}
