"""Finds the tokens that end an answer, and the files that name them.

Knows model sources and tokenizers; ending a sequence while it runs is the engine's task.

The result is the union over all files, because each alone is often wrong: fine-tuned models list `<|endoftext|>` in
generation_config.json while their template ends a turn with `<|im_end|>`.
"""

from __future__ import annotations

from collections.abc import Iterable

from inference.config import GenerationConfig
from inference.models.source import ModelSource
from inference.tokenizer import Tokenizer

# Control tokens that llama.cpp recognizes as the end of a turn by name alone (src/llama-vocab.cpp).
END_NAMES = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "[e~[",
)
# If a vocabulary has all tokens of a row, `<|end|>` ends a message, not the turn.
_MESSAGE_ENDS = (("<|return|>", "<|call|>", "<|end|>"), ("<|calls|>", "<|flush|>", "<|end|>"))
# If a vocabulary has both, `</s>` is plain text.
_PLAIN_END = ("<|tool_response>", "</s>")


def with_ends(source: ModelSource, tokenizer: Tokenizer | None, generation: GenerationConfig) -> GenerationConfig:
    """Adds every token that ends an answer to the settings, unless their ends differ from the model's."""
    if generation.eos_token_id != source.generation.eos_token_id:
        return generation
    return generation.updated(eos_token_id=list(ends_of_answer(source, tokenizer)))


def ends_of_answer(source: ModelSource, tokenizer: Tokenizer | None) -> dict[int, str]:
    """Returns the ids of the tokens that end an answer, each with the source that names it.

    An eos_token_id given by the user, in generation_config or on the command line, replaces all others.
    """
    if source.ends_are_given:
        origin = source.config.origin("generation_config.eos_token_id")
        return dict.fromkeys(source.generation.eos_token_id, origin)
    reasons: dict[int, list[str]] = {}
    for origin, ids in source.stated_ends.items():
        for token_id in ids:
            reasons.setdefault(token_id, []).append(origin)
    for token_id, origin in _ends_of_tokenizer(tokenizer) if tokenizer is not None else ():
        if token_id < source.model.vocab_size:
            reasons.setdefault(token_id, []).append(origin)
    return {token_id: ", ".join(origins) for token_id, origins in reasons.items()}


def _ends_of_tokenizer(tokenizer: Tokenizer) -> Iterable[tuple[int, str]]:
    if tokenizer.eos_token_id is not None:
        yield tokenizer.eos_token_id, "the tokenizer's eos_token"
    ids = {name: tokenizer.token_to_id(name) for name in END_NAMES}
    found = {name: token_id for name, token_id in ids.items() if token_id in tokenizer.all_special_ids}
    for needed in _MESSAGE_ENDS:
        if found.keys() >= set(needed):
            del found[needed[-1]]
    if found.keys() >= set(_PLAIN_END):
        del found[_PLAIN_END[-1]]
    for name, token_id in found.items():
        if token_id is not None:
            yield token_id, f"the name {name}"


def describe_ends(source: ModelSource, tokenizer: Tokenizer | None) -> list[str]:
    """Returns a line for each end token: its id, its text and the source that names it."""
    lines = []
    for token_id, origin in ends_of_answer(source, tokenizer).items():
        token = tokenizer.id_to_token(token_id) if tokenizer is not None else None
        lines.append(f"{token_id}{'' if token is None else f' {token}'}: {origin}")
    return lines
