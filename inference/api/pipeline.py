"""`pipeline(task="text_generation", ...)`: MindFormers' high-level call, run by the engine."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from inference.api.auto import AutoModel, AutoTokenizer
from inference.errors import ConfigError, InferenceError, InputError, did_you_mean
from inference.generation.model import GenerativeModel
from inference.generation.streamers import BaseStreamer, IdStreams, SeparateStreamers, takes_ids
from inference.generation.text import EncodedPrompt
from inference.inputs.prompts import Prompt, prompt_of
from inference.tokenizer import Tokenizer

# The tasks, and the keys of their results. A task does not change how the model runs: the prompt says what to do.
TASKS = {
    "text_generation": "text_generation_text",
    "text-generation": "text_generation_text",
    "translation": "translation_text",
    "summarization": "summarization_text",
}
Input = str | Mapping[str, Any]
Inputs = Input | Sequence[Input]
# MindFormers' name for the input in `keys`, and the key to read from a mapping if `keys` does not name another.
SOURCE, TEXT = "src_language", "text"


class TextGenerationPipeline:
    """Continues texts.

    Args:
        model: the model to run.
        tokenizer: the model's tokenizer.
        streamer: receives text as it is generated.
        key: the key of the results.
        settings: generation settings for every call.
    """

    def __init__(
        self,
        model: GenerativeModel,
        tokenizer: Tokenizer,
        streamer: BaseStreamer | None = None,
        key: str = TASKS["text_generation"],
        **settings: Any,
    ):
        self.model, self.tokenizer, self.streamer, self.key = model, tokenizer, streamer, key
        model.generation_config.updated(**settings)  # raises an error if a setting is invalid
        self._settings = settings

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model!r})"

    def __call__(
        self,
        inputs: Inputs,
        batch_size: int | None = None,
        *,
        keys: Mapping[str, str] | None = None,
        add_special_tokens: bool = True,
        streamer: BaseStreamer | Sequence[BaseStreamer] | None = None,
        return_full_text: bool = True,
        return_errors: bool = False,
        **settings: Any,
    ) -> list[dict[str, Any]]:
        """Generates an answer to each input.

        Args:
            inputs: one text or several; a mapping stands for the text under its key `text`.
            batch_size: the most inputs that run together; by default as many as the model has room for.
            keys: `{"src_language": key}`: the key of a mapping to read instead of `text`.
            add_special_tokens: begin each prompt with the tokens that the model expects, such as bos.
            streamer: replaces the pipeline's own; or one for each input, so that all can be followed at once. Any
                object with `put` and `end` works, such as MindFormers' streamers: it gets token ids.
            return_full_text: put the prompt before its answer, as MindFormers does. A model with an encoder always
                returns the answer alone.
            return_errors: if an input cannot run or the model fails on it, return a result with its error and no text
                instead of raising the error.
            settings: generation settings for this call.

        Returns:
            `{"text_generation_text": [text]}` for each input, in order, under the key of the pipeline's task; with
            `return_errors`, `{"text_generation_text": [], "error": error}` for one without an answer.

        Raises:
            ConfigError: a setting is unknown.
            InputError: an input is empty or does not fit the model's context.
            GenerationError: the model failed on an input.
        """
        shown = _shown(streamer or self.streamer)
        try:
            if batch_size is not None and (type(batch_size) is not int or batch_size < 1):
                raise ConfigError(f"batch_size is {batch_size}", "give an integer of at least 1")
            prompts_given = _texts(inputs, (keys or {}).get(SOURCE, TEXT))
            encoded = self._encoded(prompts_given, settings, return_errors, add_special_tokens)
            several = _number_of_streamers(shown)
            if several is not None and several != len(encoded):
                raise InputError(f"{several} streamers for {len(encoded)} inputs", "give one for each, or a single one")
        except InferenceError:
            # Close it, or a consumer that iterates over the streamer in another thread would wait forever.
            if shown is not None:
                shown.close()
            raise
        prompts = [prompt for prompt in encoded if isinstance(prompt, EncodedPrompt)]
        if shown is not None:
            for row, prompt in enumerate(encoded):
                if isinstance(prompt, InferenceError):
                    shown.finish(row)
        size = batch_size or max(len(prompts), 1)
        batches = (prompts[start : start + size] for start in range(0, len(prompts), size))
        answers = (
            answer for batch in batches for answer in self.model.answer(batch, self.tokenizer, shown, return_errors)
        )
        results: list[dict[str, Any]] = []
        for prompt in encoded:
            texts = next(answers) if isinstance(prompt, EncodedPrompt) else prompt
            if isinstance(prompt, InferenceError) or isinstance(texts, InferenceError):
                results.append({self.key: [], "error": texts})
            else:
                results.append({self.key: [prompt.full_text(text) if return_full_text else text for text in texts]})
        return results

    def _encoded(
        self, texts: Iterable[Any], settings: Mapping[str, Any], return_errors: bool, add_special_tokens: bool
    ) -> list[EncodedPrompt | InputError]:
        encoder = self.model.encoder(self.tokenizer, **{**self._settings, **settings})
        encoded: list[EncodedPrompt | InputError] = []
        for row, text in enumerate(texts):
            try:
                prompt = prompt_of(text, f"input {row + 1}", str(row))
                if add_special_tokens or prompt.text is None:
                    encoded.append(encoder.encode(row, prompt))
                else:
                    ids = self.tokenizer.encode(prompt.text, add_special_tokens=False)
                    bare = Prompt(prompt.custom_id, prompt.where, token_ids=tuple(ids))
                    encoded.append(replace(encoder.encode(row, bare), text=prompt.text))
            except InputError as error:
                if not return_errors:
                    raise
                encoded.append(error)
        if not encoded:
            raise InputError("the pipeline was given no input", "give a text or a list of texts")
        return encoded


def _shown(given: Any) -> BaseStreamer | SeparateStreamers | IdStreams | None:
    """Returns what passes text to streamers, or ids to those that have only `put` and `end`."""
    if given is None:
        return None
    if takes_ids(given) or (isinstance(given, Sequence) and any(map(takes_ids, given))):
        return IdStreams(given)
    return given if isinstance(given, BaseStreamer) else SeparateStreamers(given)


def _number_of_streamers(shown: BaseStreamer | SeparateStreamers | IdStreams | None) -> int | None:
    """Returns how many rows have streamers of their own; None if one streamer, or none, has all."""
    if isinstance(shown, SeparateStreamers) or (isinstance(shown, IdStreams) and not shown.is_single):
        return len(shown)
    return None


def _texts(inputs: Inputs, key: str) -> list[Any]:
    """Returns the texts of inputs.

    Raises:
        InputError: a mapping lacks the key.
    """
    texts = []
    for number, item in enumerate([inputs] if isinstance(inputs, (str, Mapping)) else inputs, 1):
        if isinstance(item, Mapping):
            if key not in item and "role" in item:
                raise InputError(f"input {number} is a message of a chat", "use LLM(...).chat(messages)")
            if key not in item:
                found = ", ".join(map(str, item)) or "none"
                raise InputError(f"input {number} has no key '{key}'", f"its keys: {found}; keys={{'{SOURCE}': KEY}}")
            item = item[key]
        texts.append(item)
    return texts


def pipeline(
    task: str = "text_generation",
    model: GenerativeModel | str | None = None,
    tokenizer: Tokenizer | None = None,
    image_processor: Any = None,
    audio_processor: Any = None,
    backend: str = "ms",
    *,
    streamer: BaseStreamer | None = None,
    **settings: Any,
) -> TextGenerationPipeline:
    """Makes a pipeline for a task.

    Args:
        task: `text_generation`; `translation` (also `translation_en_to_de`) and `summarization` differ only
            in the key of their results: the prompt says what to do, as in `translate English to German: ...`.
        model: a model, or the name of one.
        tokenizer: by default the model's own.
        image_processor, audio_processor: refused; present because MindFormers has them in these positions.
        backend: `ms`, the only backend of MindFormers.
        streamer: receives text as it is generated.
        settings: generation settings for every call.

    Raises:
        ConfigError: the task or a setting is unknown, or a processor is given.
    """
    for name, processor in (("image_processor", image_processor), ("audio_processor", audio_processor)):
        if processor is not None:
            hint = "leave it out; a streamer is given by its name" if isinstance(processor, BaseStreamer) else None
            raise ConfigError(f"pipeline has no use for {name}: models here read text", hint)
    if backend != "ms":
        raise ConfigError(f"there is no backend '{backend}'", "known: ms")
    kind = "translation" if re.fullmatch("translation_[a-z]+_to_[a-z]+", task) else task
    if kind not in TASKS:
        hint = did_you_mean(task, TASKS) or "known: text_generation, translation, summarization"
        raise ConfigError(f"there is no task '{task}'", hint)
    if model is None:
        raise ConfigError("pipeline needs a model", "give a model, a preset's name or a directory")
    if isinstance(model, str):
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(model)
        model = AutoModel.from_pretrained(model)
    return TextGenerationPipeline(model, tokenizer or model.source.tokenizer(), streamer, TASKS[kind], **settings)
