"""The steps that process rows before the models: one table, in the order in which they run.

`deduplicate` and `chunk` do not process rows one by one: the first compares rows (`build`, `parts`), the second wraps
a model (`chunks`). Knows rows; knows nothing about engines.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from hashlib import blake2b
from typing import Any, Protocol

from inference.beam.pipeline.counting import count
from inference.beam.pipeline.row_state import RowState, bad_row, prompt_text
from inference.beam.pipeline.token_cuts import TokenCuts
from inference.config import InferenceConfig
from inference.config.preprocess_settings import PreprocessSettings
from inference.errors import ConfigError, InputError, did_you_mean
from inference.inputs.prompts import Prompt
from inference.models.source import resolve
from inference.tokenizer.template_sandbox import TemplateLimitError, make_environment, render

# Patterns of personal data. None of them verifies check digits, so some other numbers are masked too.
PATTERNS = {
    "email": r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+",
    "url": r"https?://\S+",
    "iban": r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?\b",
    "card": r"\b(?:\d[ -]?){13,18}\d\b",
    "ip": r"\b(?:\d{1,3}\.){3}\d{1,3}\b",
    "phone": r"(?<![\w.])(?:\+\d{1,3}[ .-]?)?(?:\(\d{1,5}\)[ .-]?)?\d{2,4}(?:[ .-]\d{2,4}){1,4}(?![\w.])|\+\d{7,15}\b",
}
_SPACES, _AROUND_LINES, _EMPTY_LINES = re.compile(r"[^\S\n]+"), re.compile(r" ?\n ?"), re.compile(r"\n{3,}")


class RowStep(Protocol):
    """Changes a row, or drops it (None)."""

    def __call__(self, state: RowState) -> RowState | None: ...


class _TextStep:
    """Changes each text of a prompt: the prompt itself, or the messages of a chat.

    Args:
        name: name of the count of changed rows.
    """

    def __init__(self, name: str, change: Callable[[str], str]):
        self._name, self._change = name, change

    def __call__(self, state: RowState) -> RowState:
        changed = with_texts(state, self._change)
        if changed.prompt != state.prompt:
            count(self._name)
        return changed


class _Filter:
    """Drops the rows for which an expression is false."""

    def __init__(self, expression: str):
        from jinja2 import TemplateError

        self._expression = expression
        try:
            make_environment().compile_expression(expression)
            _ = self._template
        except (TemplateError, TemplateLimitError, RecursionError) as error:
            raise ConfigError(
                f"pipeline.preprocess.filter is not an expression: {error}", "such as: words > 3"
            ) from error

    @cached_property
    def _template(self) -> Any:
        from jinja2 import StrictUndefined

        return make_environment(undefined=StrictUndefined).from_string(f"{{% if {self._expression} %}}yes{{% endif %}}")

    def __call__(self, state: RowState) -> RowState | None:
        from jinja2 import TemplateError

        text = prompt_text(state) or ""
        row = state.data if isinstance(state.data, Mapping) else {}
        values = {"prompt": text, "row": row, "words": len(text.split()), "characters": len(text)}
        try:
            kept = render(self._template, values) == "yes"
        except (TemplateError, TemplateLimitError, TypeError, ValueError, ArithmeticError) as error:
            where = f"{state.file}:{state.line}" if state.file else f"row {state.key}"
            return bad_row(state, InputError(f"{where}: pipeline.preprocess.filter: {error}"))
        if not kept:
            count("rows_filtered")
        return state if kept else None

    def __getstate__(self) -> dict[str, Any]:
        return {"_expression": self._expression}


class _Truncate:
    """Cuts long prompts; in a chat, the last message. Each process that runs this step loads the tokenizer."""

    def __init__(self, config: InferenceConfig, tokens: int, side: str):
        self._config, self._tokens, self._side = config, tokens, side

    @cached_property
    def _cuts(self) -> TokenCuts:
        return cuts_of(self._config)

    def __call__(self, state: RowState) -> RowState:
        prompt = state.prompt
        if prompt is not None and prompt.token_ids is not None:
            ids = prompt.token_ids
            cut = replace(prompt, token_ids=ids[: self._tokens] if self._side == "right" else ids[-self._tokens :])
            changed = replace(state, prompt=cut)
        else:
            changed = with_texts(state, lambda text: self._cuts.truncated(text, self._tokens, self._side), last=True)
        if changed.prompt != prompt:
            count("rows_truncated")
        return changed

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_cuts"}


def cuts_of(config: InferenceConfig) -> TokenCuts:
    """Return an object that cuts texts by the tokens of a config's model.

    Raises:
        ConfigError: the model has no tokenizer.
    """
    tokenizer = resolve(config).tokenizer()
    if tokenizer is None:
        raise ConfigError("pipeline.preprocess counts tokens, and the model has no tokenizer", "add its files")
    return TokenCuts(lambda text: len(tokenizer.encode(text, add_special_tokens=False)))


def _normalize(settings: PreprocessSettings, config: InferenceConfig) -> RowStep | None:
    form, whitespace = settings.normalize.form, settings.normalize.whitespace

    def normalized(text: str) -> str:
        if form is not None:
            text = unicodedata.normalize(form, text)
        if whitespace:
            text = _AROUND_LINES.sub("\n", _SPACES.sub(" ", text.replace("\r\n", "\n")))
            text = _EMPTY_LINES.sub("\n\n", text).strip()
        return text

    return _TextStep("rows_normalized", normalized) if form or whitespace else None


def _mask(settings: PreprocessSettings, config: InferenceConfig) -> RowStep | None:
    named: dict[str, str] = {}
    for kind in settings.mask.kinds:
        if kind not in PATTERNS:
            hint = did_you_mean(kind, PATTERNS) or f"known: {', '.join(PATTERNS)}"
            raise ConfigError(f"pipeline.preprocess.mask.kinds: there is no kind '{kind}'", hint)
    # In the order of the table: part of an IBAN or a card number looks like a phone number.
    named |= {kind: pattern for kind, pattern in PATTERNS.items() if kind in settings.mask.kinds}
    patterns: list[tuple[re.Pattern[str], str]] = []
    for name, pattern in {**settings.mask.patterns, **named}.items():
        try:
            patterns.append((re.compile(str(pattern)), f"[{name.upper()}]"))
        except re.error as error:
            where = f"pipeline.preprocess.mask.patterns.{name}"
            raise ConfigError(f"{where} is not a regular expression: {error}") from error

    def masked(text: str) -> str:
        for pattern, kind in patterns:
            # Without backslashes, the replacement cannot refer to groups.
            text, times = pattern.subn(kind.replace("\\", ""), text)
            if times:
                count(f"masked_{kind[1:-1].lower()}", times)
        return text

    return _TextStep("rows_masked", masked) if patterns else None


def _filter(settings: PreprocessSettings, config: InferenceConfig) -> RowStep | None:
    return None if settings.filter is None else _Filter(settings.filter)


def _truncate(settings: PreprocessSettings, config: InferenceConfig) -> RowStep | None:
    cut = settings.truncate
    return None if cut.tokens is None else _Truncate(config, cut.tokens, cut.side)


# All steps for one row, in order. Each function makes a step from the settings, or returns None if the step is off.
STEPS: dict[str, Callable[[PreprocessSettings, InferenceConfig], RowStep | None]] = {
    "normalize": _normalize,
    "mask": _mask,
    "filter": _filter,
    "truncate": _truncate,
}


class Preprocess:
    """All steps for one row that a config turns on. It is sent to workers.

    Raises:
        ConfigError: a pattern, an expression or an overlap is invalid.
    """

    def __init__(self, config: InferenceConfig):
        settings = config.pipeline.preprocess
        self._steps = [step for make in STEPS.values() if (step := make(settings, config)) is not None]
        self.deduplicates = settings.deduplicate
        # The active settings, to check a resumed run.
        self.given = _asked_for(settings)
        chunk = settings.chunk
        if chunk.tokens is not None and chunk.overlap >= chunk.tokens:
            raise ConfigError(
                f"pipeline.preprocess.chunk: overlap {chunk.overlap} is not less than tokens {chunk.tokens}",
                "give a smaller overlap",
            )

    def __call__(self, state: RowState) -> RowState | None:
        """Apply the steps to a row; None if one drops it. A row with an error does not change."""
        for step in self._steps:
            if state.error is not None or state.prompt is None:
                return state
            changed = step(state)
            if changed is None:
                return None
            state = changed
        return state


def _asked_for(settings: PreprocessSettings) -> dict[str, Any]:
    """Return the settings that differ from their defaults, by section."""
    given, default = settings.model_dump(), PreprocessSettings().model_dump()
    return {name: value for name, value in given.items() if value != default[name]}


def with_texts(state: RowState, change: Callable[[str], str], last: bool = False) -> RowState:
    """Change the texts of a row's prompt.

    Args:
        last: in a chat, change only the last message.
    """
    prompt = state.prompt
    if prompt is None or prompt.token_ids is not None:
        return state
    if prompt.text is not None:
        return replace(state, prompt=replace(prompt, text=change(prompt.text)))
    messages = list(prompt.messages or ())
    for place in range(len(messages) - 1 if last else 0, len(messages)):
        content = messages[place].get("content")
        if isinstance(content, str):
            messages[place] = {**messages[place], "content": change(content)}
    return replace(state, prompt=replace(prompt, messages=tuple(messages)))


def digest_of(prompt: Prompt) -> str:
    """Return a digest of a prompt's contents; equal prompts have equal digests."""
    said = [prompt.text, prompt.token_ids, prompt.messages]
    return blake2b(json.dumps(said, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()
