"""Generation settings: their names, their ranges, and the precedence of their sources.

Knows generation settings as MindFormers and Hugging Face spell them; knows nothing about config files, models or
tensors.
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
    Free,
    LengthPenalty,
    LogitBias,
    NonNegative,
    Positive,
    Probability,
    Section,
    Seed,
    SequenceBias,
    Texts,
    TokenId,
    TokenIds,
    TokenSequences,
    only,
)
from inference.errors import ConfigError, did_you_mean

GENERATION_FILE = "generation_config.json"
# Keys in Hugging Face's files that have no effect here: bookkeeping, and settings that only beam search reads.
IGNORED_KEYS = frozenset(
    {
        "_from_model_config",
        "cache_config",
        "cache_implementation",
        "chat_format",
        "diversity_penalty",
        "early_stopping",
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
# Known settings that are accepted only at a value that changes nothing. If a model's own file sets them, they are
# ignored.
NOT_SUPPORTED_YET = frozenset(
    {
        "num_beams",
        "output_logits",
        "output_scores",
        "parallel_decoding",
        "return_dict_in_generate",
    }
)


def _off_is_zero(top_k: int) -> int:
    return max(top_k, 0)


Temperature = Annotated[float, Field(ge=0)]
TopK = Annotated[int, Field(ge=-1), AfterValidator(_off_is_zero)]
TopP = Annotated[float, Field(gt=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Cutoff = Annotated[float, Field(ge=0, lt=1)]


class GenerationSettings(Section):
    """The generation settings of one source; `given()` returns only the keys that were set."""

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
    encoder_repetition_penalty: Positive = Field(1.0, description="Above 1 makes tokens of the prompt likelier.")
    logit_bias: LogitBias = Field({}, description="Added to tokens' logits: id and number, such as 42: -5.")
    sequence_bias: SequenceBias = Field(
        (), description="Added to the logit of a sequence's last token after the others: [[[ids], number], ...]."
    )
    bad_words_ids: TokenSequences = Field((), description="Sequences of token ids that must not appear.")
    suppress_tokens: TokenIds = Field((), description="Tokens that are never chosen.")
    begin_suppress_tokens: TokenIds = Field((), description="Tokens that do not begin an answer.")
    no_repeat_ngram_size: NonNegative = Field(0, description="No run of this many tokens appears twice; 0 for any.")
    encoder_no_repeat_ngram_size: NonNegative = Field(
        0, description="No run of this many tokens of the prompt appears in the answer; 0 for any."
    )
    exponential_decay_length_penalty: LengthPenalty | None = Field(
        None, description="[start, factor]: after `start` new tokens, the end becomes ever likelier."
    )
    forced_bos_token_id: TokenId = Field(None, description="Token that begins what a decoder says.")
    forced_eos_token_id: TokenIds = Field((), description="Token that ends an answer of the greatest length.")
    typical_p: TopP = Field(1.0, description="Locally typical sampling: probability of what is kept; 1 keeps all.")
    epsilon_cutoff: Cutoff = Field(0.0, description="Sample among tokens of at least this probability; 0 among all.")
    eta_cutoff: Cutoff = Field(0.0, description="The same, with a lower bound where many tokens are likely.")
    num_return_sequences: Count = Field(1, le=1 << 14, description="Answers to each prompt; `n` means the same.")
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
    structured_outputs: Free | None = Field(
        None,
        description="Form of the answer, one of json (a schema, or its file), json_object, regex, grammar, choice.",
    )
    response_format: Free | None = Field(
        None, description="The same as OpenAI has it: type json_schema or json_object."
    )
    adapter_id: str | None = Field(
        None, description="Name of the adapter that answers; '' for the model as it is loaded."
    )
    use_past: bool = Field(True, description="Keep keys and values of past tokens; otherwise all are recomputed.")

    num_beams: Annotated[int, only(1)] = Field(1, description="Beam search; 1 is none.")
    output_scores: Annotated[bool, only(False)] = Field(False, description="Return processed logits.")
    output_logits: Annotated[bool, only(False)] = Field(False, description="Return raw logits.")
    return_dict_in_generate: Annotated[bool, only(False)] = Field(False, description="Return a dict of outputs.")
    parallel_decoding: Annotated[bool, only(False)] = Field(False, description="Lookahead or memory decoding.")


class GenerationConfig(GenerationSettings):
    """The complete generation settings.

    Raises:
        ConfigError: a setting is unknown, or a value has the wrong type or is out of range.
    """

    def __init__(self, **settings: Any):
        given = _without_nulls(settings)
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise _settings_error(error) from None

    @property
    def greedy(self) -> bool:
        """Whether decoding is greedy: each token is the most likely one."""
        return not self.do_sample or self.temperature == 0

    @property
    def has_cutoff(self) -> bool:
        """Whether tokens are filtered by their probability in the full distribution."""
        return self.typical_p < 1 or self.epsilon_cutoff > 0 or self.eta_cutoff > 0

    def new_token_limit(self, prompt_tokens: int, context_length: int) -> int:
        """Returns how many tokens may follow `prompt_tokens` within the model's context, at least 0."""
        room = context_length - prompt_tokens
        if self.max_new_tokens is not None:
            room = min(room, self.max_new_tokens)
        elif self.max_length is not None:
            room = min(room, self.max_length - prompt_tokens)
        return max(room, 0)

    def new_token_minimum(self, prompt_tokens: int) -> int:
        """Returns how many tokens must follow `prompt_tokens` before the sequence may end."""
        if self.min_new_tokens is not None:
            return self.min_new_tokens
        return max(self.min_length - prompt_tokens, 0)

    def updated(self, **settings: Any) -> GenerationConfig:
        """Returns a copy with some settings changed; None leaves a setting unchanged.

        Raises:
            ConfigError: a setting is unknown, or a value has the wrong type or is out of range.
        """
        return merge_generation_config(self, with_sampling(settings))


# Settings that other tools name differently: MindFormers, transformers, OpenAI, vLLM.
ALIASES = {
    "max_decode_length": "max_length",
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "n": "num_return_sequences",
    "stop_strings": "stop",
    "typical": "typical_p",
}
# Values at which an unsupported setting changes nothing.
NEUTRAL: Mapping[str, Any] = {"num_beams": 1, "guidance_scale": 1.0, "penalty_alpha": 0, "num_assistant_tokens": 20}
# Settings that matter only if tokens are sampled.
SAMPLING_SETTINGS = ("temperature", "top_p", "top_k")

Layers = GenerationSettings | Mapping[str, Any] | None


def merge_generation_config(*layers: Layers) -> GenerationConfig:
    """Merges the settings of several sources; later sources override earlier ones.

    Pass them in this order: the model's own `generation_config.json`, the YAML's `model.model_config`, the YAML's
    `generation_config`, the command line or the request. If both `max_length` and `max_new_tokens` are set, the one
    from the later source wins and the other is dropped; if one source sets both, `max_new_tokens` wins, as in Hugging
    Face.

    Raises:
        ConfigError: a setting is unknown, a value has the wrong type or is out of range, or settings are mutually
            exclusive.
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
    """Reads the settings in a model's `generation_config.json`; returns empty settings if the file does not exist.

    Skips unknown and unsupported settings, because the file belongs to the model and not to the user;
    `ignored_settings` names them. A value of the wrong type is an error.

    Raises:
        ConfigError: the file is not JSON, or a value in it has the wrong type or is out of range.
    """
    return settings_from_model(_read(path), str(path))


def ignored_settings(path: Path) -> list[str]:
    """Lists the settings in a model's `generation_config.json` that would change the output but are ignored.

    Raises:
        ConfigError: the file is not JSON.
    """
    known = (GenerationSettings.model_fields.keys() - NOT_SUPPORTED_YET) | ALIASES.keys() | IGNORED_KEYS
    return [
        f"{name} {json.dumps(value)}"
        for name, value in _read(path).items()
        if name not in known and value not in (None, False, "", [], {}, NEUTRAL.get(name))
    ]


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} must hold a mapping of settings")
    return settings


def settings_from_model(settings: Mapping[str, Any], origin: str) -> GenerationSettings:
    """Picks the generation settings from `settings`, which come from a model's own files.

    Raises:
        ConfigError: a value has the wrong type or is out of range; the message begins with `origin`.
    """
    supported = GenerationSettings.model_fields.keys() - NOT_SUPPORTED_YET
    known = {name: value for name, value in _normal_spelling(settings).items() if name in supported}
    try:
        return GenerationSettings.model_validate(known)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {problems_of(error)[0].sentence()}") from None


def with_sampling(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the settings of one call, row or command line, with `do_sample` on if another setting implies it."""
    return {**settings, "do_sample": True} if sampling_setting(settings) else settings


def sampling_setting(settings: Mapping[str, Any]) -> str | None:
    """Returns the setting that implies sampling, such as temperature, or None.

    Nothing implies sampling if do_sample is set or temperature is 0. Other tools sample here too. MindFormers and
    transformers do not if the setting is in a file, so files keep that meaning.
    """
    if settings.get("do_sample") is not None or settings.get("temperature") == 0:
        return None
    return next((name for name in SAMPLING_SETTINGS if settings.get(name) is not None), None)


def _given(layer: Layers) -> dict[str, Any]:
    if layer is None:
        return {}
    if isinstance(layer, GenerationSettings):
        return layer.given()
    return GenerationConfig(**_normal_spelling(layer)).given()


def _normal_spelling(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Renames settings from other tools' names to ours; a setting already under our name wins."""
    normal = _without_nulls(settings)
    for name, ours in ALIASES.items():
        value = normal.pop(name, None)
        if value is not None:
            normal.setdefault(ours, value)
    _join_logprobs(normal)
    return {name: value for name, value in normal.items() if name not in IGNORED_KEYS}


def _join_logprobs(settings: dict[str, Any]) -> None:
    """Turns OpenAI's chat form `logprobs: true, top_logprobs: 3` into the completions form `logprobs: 3`."""
    top = settings.pop("top_logprobs", None)
    if isinstance(settings.get("logprobs"), bool):
        if settings.pop("logprobs"):
            settings["logprobs"] = top or 0
    elif top is not None:
        settings.setdefault("logprobs", top)


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
