"""`Chunked`: a handler that answers long prompts in chunks, and joins the answers of a prompt's chunks into one.

Knows prompts and records; knows nothing about the handler that it wraps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from apache_beam.ml.inference.base import ModelHandler, PredictionResult

from inference.answering.elements import prompt_from
from inference.beam.handlers.row_by_row import RowByRow
from inference.beam.pipeline.counting import count
from inference.beam.pipeline.preprocess import cuts_of
from inference.beam.pipeline.token_cuts import TokenCuts
from inference.config import InferenceConfig
from inference.config.preprocess_settings import ChunkSettings
from inference.errors import InputError
from inference.inputs.prompts import Prompt

# Numbers to sum over the chunks of a prompt.
SUMMED = ("prompt_tokens", "completion_tokens", "cached_tokens", "truncated_tokens", "attempts")


class Chunked(RowByRow):
    """Wraps a handler whose results are records of answers.

    Args:
        config: config of the model whose tokenizer counts.
    """

    def __init__(self, base: ModelHandler, config: InferenceConfig, settings: ChunkSettings):
        super().__init__(base)
        self._config, self._settings = config, settings

    def run_inference(
        self, batch: Sequence[Any], model: Any, inference_args: dict[str, Any] | None = None
    ) -> Iterable[Any]:
        """Answer a batch; all chunks of its prompts run together."""
        pieces = [self._pieces(example) for example in batch]
        flat = [piece for own in pieces for piece in own]
        answered = iter(self._base.run_inference(flat, model, inference_args))
        results = []
        for example, own in zip(batch, pieces, strict=True):
            found = [next(answered) for _ in own]
            if len(own) > 1:
                count("rows_chunked")
                count("chunks", len(own))
                joined = joined_record([result.inference for result in found], self._settings.join)
                found = [PredictionResult(example, joined, found[0].model_id)]
            results += found
        return results

    def _pieces(self, example: Any) -> list[Any]:
        """The chunks of an example as prompts; only the example itself if it is short or is not a prompt."""
        try:
            prompt = prompt_from(example)
        except InputError:
            return [example]  # the handler reports what is wrong
        tokens, overlap = self._settings.tokens or 1, self._settings.overlap
        if prompt.token_ids is not None:
            step = tokens - overlap
            last = max(len(prompt.token_ids) - overlap, 1)
            cut = [replace(prompt, token_ids=prompt.token_ids[at : at + tokens]) for at in range(0, last, step)]
            return cut if len(cut) > 1 else [example]
        texts = self._cuts.chunks(_text_of(prompt), tokens, overlap)
        return [_with_text(prompt, text) for text in texts] if len(texts) > 1 else [example]

    @cached_property
    def _cuts(self) -> TokenCuts:
        return cuts_of(self._config)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_cuts"}


def joined_record(records: Sequence[dict[str, Any]], join: str) -> dict[str, Any]:
    """Join the records of a prompt's chunks. If any chunk failed, the prompt fails with the first error."""
    for number, record in enumerate(records, 1):
        if record["error"] is not None:
            message = f"chunk {number} of {len(records)}: {record['error']['message']}"
            return {**record, "error": {**record["error"], "message": message}}
    whole = {**records[0], "text": join.join(record["text"] or "" for record in records)}
    whole["token_ids"] = [token for record in records for token in record["token_ids"] or ()]
    # If a record has no prompt, the pipeline shows the row's.
    whole["prompt"] = None
    for name in SUMMED:
        values = [record[name] for record in records if record.get(name) is not None]
        if values:
            whole[name] = sum(values)
    reasons = [record["finish_reason"] for record in records]
    whole["finish_reason"] = "length" if "length" in reasons else reasons[-1]
    times = [record["total_seconds"] for record in records if record.get("total_seconds") is not None]
    whole["total_seconds"] = max(times, default=None)
    return whole


def _text_of(prompt: Prompt) -> str:
    if prompt.messages is None:
        return prompt.text or ""
    content = prompt.messages[-1].get("content")
    return content if isinstance(content, str) else ""


def _with_text(prompt: Prompt, text: str) -> Prompt:
    if prompt.messages is None:
        return replace(prompt, text=text)
    return replace(prompt, messages=(*prompt.messages[:-1], {**prompt.messages[-1], "content": text}))
