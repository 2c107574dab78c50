"""How text is generated: the settings, their ranges, and the order in which sources outrank one another.

Knows generation settings as MindFormers and Hugging Face spell them; knows nothing about files of a config,
models or tensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError

from inference.config.problems import problems_of
from inference.config.values import (
    Count,
    NonNegative,
    Positive,
    Probability,
    Section,
    Seed,
    Texts,
    TokenId,
    TokenIds,
    only,
)
from inference.errors import ConfigError, did_you_mean

GENERATION_FILE = "generation_config.json"
# In Hugging Face's files and without effect here: bookkeeping, and what only beam search reads.
IGNORED_KEYS = frozenset(
    {
        "_from_model_config",
        "cache_config",
        "cache_implementation",
        "chat_format",
        "diversity_penalty",
        "early_stopping",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "length_penalty",
        "max_time",
        "max_window_size",
        "num_beam_groups",
        "output_attentions",
        "output_hidden_states",
        "return_legacy_cache",
        "transformers_version",
        "trust_remote_code",
        "use_cache",
    }
)
# Known, and accepted only where they change nothing. A model's own file may ask for them; that is passed
# over.
NOT_SUPPORTED_YET = frozenset(
    {
        "encoder_repetition_penalty",
        "no_repeat_ngram_size",
        "num_beams",
        "num_return_sequences",
        "output_logits",
        "output_scores",
        "parallel_decoding",
        "return_dict_in_generate",
        "typical_p",
    }
)


def _off_is_zero(top_k: int) -> int:
    return max(top_k, 0)


Temperature = Annotated[float, Field(ge=0)]
TopK = Annotated[int, Field(ge=-1), AfterValidator(_off_is_zero)]
TopP = Annotated[float, Field(gt=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


class GenerationSettings(Section):
    """What one source says about generation; `given()` tells set keys from defaults."""

    max_length: Count | None = Field(None, description="Most tokens of prompt and answer together.")
    max_new_tokens: Count | None = Field(
        None,
        description="Most tokens of the answer; outranks max_length unless that comes from a later source.",
    )
    min_length: NonNegative = Field(0, description="Fewest tokens of prompt and answer together.")
    min_new_tokens: NonNegative | None = Field(None, description="Fewest tokens of the answer; outranks min_length.")
    do_sample: bool = Field(False, description="Draw tokens at random; otherwise the most likely one is taken.")
    temperature: Temperature = Field(
        1.0, description="Divides the logits before sampling; 0 takes the most likely token."
    )
    top_k: TopK = Field(50, description="Sample among the k most likely tokens; 0 or -1 among all.")
    top_p: TopP = Field(1.0, description="Sample among the fewest tokens whose probabilities add up to this.")
    min_p: Probability = Field(
        0.0, description="Sample among tokens at least this fraction as likely as the most likely one."
    )
    repetition_penalty: Positive = Field(1.0, description="Above 1 makes tokens that occurred less likely.")
    frequency_penalty: Penalty = Field(
        0.0, description="Subtracted from a token's logit for each time it was generated."
    )
    presence_penalty: Penalty = Field(0.0, description="Subtracted from a token's logit once it was generated.")
    renormalize_logits: bool = Field(False, description="Normalize log probabilities after all filters.")
    bos_token_id: TokenId = Field(None, description="Token that begins a sequence.")
    eos_token_id: TokenIds = Field((), description="Tokens that end a sequence: one id or a list.")
    pad_token_id: TokenId = Field(None, description="Token that fills up short rows.")
    ignore_eos: bool = Field(False, description="Go on past tokens that end a sequence.")
    stop: Texts = Field((), description="Texts that end the answer when they appear: one or a list.")
    skip_special_tokens: bool = Field(True, description="Leave special tokens out of the text of an answer.")
    seed: Seed | None = Field(None, description="Seed of sampling; every integer from 0 seeds.")
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = Field(
        None, description="Report log probabilities, with this many of the most likely tokens."
    )
    adapter_id: str | None = Field(
        None, description="Name of the adapter that answers; '' for the model as it is loaded."
    )
    use_past: bool = Field(True, description="Keep keys and values of past tokens; otherwise all are recomputed.")

    num_beams: Annotated[int, only(1)] = Field(1, description="Beam search; 1 is none.")
    num_return_sequences: Annotated[int, only(1)] = Field(1, description="Answers to each prompt.")
    typical_p: Annotated[float, only(1.0)] = Field(1.0, description="Locally typical sampling; 1 is none.")
    no_repeat_ngram_size: Annotated[int, only(0)] = Field(0, description="Forbid repeated n-grams; 0 does not.")
    encoder_repetition_penalty: Annotated[float, only(1.0)] = Field(1.0, description="For encoders; 1 is none.")
    output_scores: Annotated[bool, only(False)] = Field(False, description="Return processed logits.")
    output_logits: Annotated[bool, only(False)] = Field(False, description="Return raw logits.")
    return_dict_in_generate: Annotated[bool, only(False)] = Field(False, description="Return a dict of outputs.")
    parallel_decoding: Annotated[bool, only(False)] = Field(False, description="Lookahead or memory decoding.")


class GenerationConfig(GenerationSettings):
    """The complete settings of generation.

    Raises:
        ConfigError: an unknown setting, or a value of the wrong type or out of range.
    """

    def __init__(self, **settings: Any):
        given = _without_nulls(settings)
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise _settings_error(error) from None

    @property
    def greedy(self) -> bool:
        """Whether each token is the most likely one."""
        return not self.do_sample or self.temperature == 0

    def new_token_limit(self, prompt_tokens: int, context_length: int) -> int:
        """The most tokens that may come after `prompt_tokens`, at least 0, within the model's context."""
        room = context_length - prompt_tokens
        if self.max_new_tokens is not None:
            room = min(room, self.max_new_tokens)
        elif self.max_length is not None:
            room = min(room, self.max_length - prompt_tokens)
        return max(room, 0)

    def new_token_minimum(self, prompt_tokens: int) -> int:
        """The fewest tokens to generate after `prompt_tokens` before the sequence may end."""
        if self.min_new_tokens is not None:
            return self.min_new_tokens
        return max(self.min_length - prompt_tokens, 0)

    def updated(self, **settings: Any) -> GenerationConfig:
        """A copy with some settings changed; None leaves a setting as it is.

        Raises:
            ConfigError: an unknown setting, or a value of the wrong type or out of range.
        """
        return merge_generation_config(self, settings)


Layers = GenerationSettings | Mapping[str, Any] | None


def merge_generation_config(*layers: Layers) -> GenerationConfig:
    """The settings of several sources as one; later sources outrank earlier ones.

    The order to give them in: the model's own `generation_config.json`, the YAML's `model.model_config`, the
    YAML's `generation_config`, the command line or the request. Of `max_length` and `max_new_tokens` the one
    from the later source counts and the other is dropped; from one source, `max_new_tokens` counts, as in
    Hugging Face.

    Raises:
        ConfigError: an unknown setting, a value of the wrong type or out of range, or settings that exclude
            each other.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        given = _given(layer)
        if "max_new_tokens" in given:
            given.pop("max_length", None)
        if "max_new_tokens" in given or "max_length" in given:
            merged.pop("max_new_tokens", None)
            merged.pop("max_length", None)
        merged.update(given)
    config = GenerationConfig(**merged)
    _check_lengths(config)
    return config


def read_generation_file(path: Path) -> GenerationSettings:
    """The settings of a model's `generation_config.json`; no settings where there is no such file.

    Unknown keys and settings that are not supported are passed over, since the file is the model's and not
    the user's; a value of the wrong type is an error.

    Raises:
        ConfigError: the file is not JSON, or a value in it is of the wrong type or out of range.
    """
    if not path.is_file():
        return GenerationSettings()
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} must hold a mapping of settings")
    return settings_from_model(settings, str(path))


def settings_from_model(settings: Mapping[str, Any], origin: str) -> GenerationSettings:
    """The generation settings among `settings` of a model's own files.

    Raises:
        ConfigError: a value of the wrong type or out of range; the message begins with `origin`.
    """
    supported = GenerationSettings.model_fields.keys() - NOT_SUPPORTED_YET
    known = {name: value for name, value in settings.items() if name in supported and value is not None}
    try:
        return GenerationSettings.model_validate(known)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {problems_of(error)[0].sentence()}") from None


def _given(layer: Layers) -> dict[str, Any]:
    if layer is None:
        return {}
    if isinstance(layer, GenerationSettings):
        return layer.given()
    return GenerationConfig(**_normal_spelling(layer)).given()


def _normal_spelling(settings: Mapping[str, Any]) -> dict[str, Any]:
    """MindFormers' `max_decode_length` is `max_length`; its own `max_length` outranks it."""
    normal = _without_nulls(settings)
    length = normal.pop("max_decode_length", None)
    if length is not None:
        normal.setdefault("max_length", length)
    return {name: value for name, value in normal.items() if name not in IGNORED_KEYS}


def _without_nulls(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def _check_lengths(config: GenerationConfig) -> None:
    fewest, most = config.min_new_tokens, config.max_new_tokens
    if fewest is not None and most is not None and fewest > most:
        raise ConfigError(
            f"min_new_tokens {fewest} is greater than max_new_tokens {most}", "lower one or raise the other"
        )


def _settings_error(error: ValidationError) -> ConfigError:
    first = problems_of(error)[0]
    if first.unknown:
        name = str(first.path[-1])
        return ConfigError(f"unknown generation setting '{name}'", did_you_mean(name, GenerationConfig.model_fields))
    return ConfigError(first.sentence())
