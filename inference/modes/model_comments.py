"""The comments of `--print_config` about the model: the formats of its weights, and the tokens that end an answer."""

from __future__ import annotations

from pathlib import Path

from inference.config import InferenceConfig
from inference.config.locate import DEMOS
from inference.errors import InferenceError
from inference.generation.build import weight_format_of
from inference.generation.ends import describe_ends
from inference.models.source import ModelSource, resolve
from inference.models.weights.weight_formats import describe_quantized


def model_as_comments(config: InferenceConfig) -> list[str]:
    """Returns YAML comments: how a quantized checkpoint is converted, each token that ends an answer, and its source.

    Empty if the model is not on this disk.
    """
    given = config.load_checkpoint or config.pretrained_model_dir
    if not given or not (given in DEMOS or Path(given).expanduser().exists()):
        return []
    try:
        source = resolve(config)
    except InferenceError as error:
        return [f"# Weights, and tokens that end an answer: unknown ({error})"]
    return [*_weights(source), *_ends(source)]


def _weights(source: ModelSource) -> list[str]:
    if source.packed is not None:
        return [f"# Weights: packed as {source.packed.value}"]
    try:
        pairs = source.pairs()
        line = describe_quantized(pairs, weight_format_of(source, pairs))
    except InferenceError as error:
        return [f"# Weights: unknown ({error})"]
    return [f"# Weights: {line}"] if line else []


def _ends(source: ModelSource) -> list[str]:
    try:
        ends = describe_ends(source, source.tokenizer())
    except InferenceError as error:
        return [f"# Tokens that end an answer: unknown ({error})"]
    return ["# Tokens that end an answer, and where they are set:", *(f"#   {line}" for line in ends)]
