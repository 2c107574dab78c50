"""A model's answers to examples, with their times and the likelihood of the references.

Knows a loaded model; knows nothing about scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from inference.errors import InferenceError
from inference.evaluate.examples import Example
from inference.generation.perplexity import Continuation, score_continuations
from inference.generation.text import Encoder

if TYPE_CHECKING:
    from inference.api.llm import LLM


@dataclass(frozen=True)
class Answered:
    """An example and a model's answer.

    Args:
        prompt: the prompt as text.
        text: the answer; empty if there is none.
        error: why there is no answer; None if there is one.
        reference_nats: negative log likelihood of the first reference; None if it could not be measured.
        reference_tokens: number of tokens in the first reference.
    """

    custom_id: str
    slices: tuple[str, ...]
    prompt: str
    references: tuple[str, ...]
    text: str
    error: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    ttft_seconds: float | None = None
    total_seconds: float | None = None
    reference_nats: float | None = None
    reference_tokens: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Answered:
        """Restore from JSON values.

        Raises:
            TypeError: keys are missing or unknown.
        """
        return cls(**{**values, "slices": tuple(values["slices"]), "references": tuple(values["references"])})


def answer_examples(
    llm: LLM,
    examples: Sequence[Example],
    *,
    perplexity: bool = True,
    progress: Callable[[int], None] | None = None,
) -> list[Answered]:
    """Answer examples. The results are in the order of the examples; a row that cannot be answered holds its error.

    Args:
        perplexity: also measure the perplexity of the references.
        progress: called with the number of rows done.
    """
    answers: dict[int, Answered] = {}
    for completion in llm.generate([example.prompt for example in examples], return_errors=True):
        row = completion.row
        assert row is not None
        example = examples[row]
        answers[row] = Answered(
            example.prompt.custom_id,
            example.slices,
            completion.prompt or "",
            example.references,
            completion.text or "",
            str(completion.error) if completion.error else None,
            completion.finish_reason,
            completion.prompt_tokens,
            completion.completion_tokens,
            completion.ttft_seconds,
            completion.total_seconds,
        )
        if progress:
            progress(len(answers))
    rows = [answers[index] for index in range(len(examples))]
    return _with_perplexity(llm, examples, rows) if perplexity else rows


def encode_reference(encoder: Encoder, row: int, example: Example) -> Continuation | None:
    """Encode a prompt with its first reference; None if they do not fit.

    The two are encoded as one text, because a token may span both. If the model has an encoder that reads the prompt,
    the reference is encoded separately, and its end token counts too.
    """
    tokenizer = encoder.tokenizer
    assert tokenizer is not None
    try:
        source = encoder.encode(row, example.prompt)
    except InferenceError:
        return None
    reference = example.references[0]
    if source.decoder_start is not None:
        ids, start = [source.decoder_start, *tokenizer.encode(reference)], 1
    elif example.prompt.token_ids is not None:
        ids, start = source.ids + tokenizer.encode(reference, add_special_tokens=False), len(source.ids)
    else:
        ids = tokenizer.encode(source.text + reference, add_special_tokens=not source.is_chat)
        pairs = zip(ids, source.ids, strict=False)
        start = max(sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)), 1)
    fits = start < len(ids) <= encoder.context_length and not source.truncated
    return (
        Continuation(ids, start, source.adapter, source.ids if source.decoder_start is not None else ())
        if fits
        else None
    )


def _with_perplexity(llm: LLM, examples: Sequence[Example], rows: list[Answered]) -> list[Answered]:
    encoder = llm.model.encoder(llm.tokenizer)
    encoded = {index: encode_reference(encoder, index, example) for index, example in enumerate(examples)}
    usable = {index: row for index, row in encoded.items() if row is not None}
    # Holding the engine keeps others from stepping the model.
    with llm.model.engine():
        scores = score_continuations(llm.model.runner, usable.values())
    for index, score in zip(usable, scores, strict=True):
        rows[index] = Answered(**{**vars(rows[index]), "reference_nats": score.nats, "reference_tokens": score.tokens})
    return rows
