"""The comments of `--print_config` about the tokens that end an answer."""

from __future__ import annotations

from pathlib import Path

from inference.config import InferenceConfig
from inference.config.locate import DEMOS
from inference.errors import InferenceError
from inference.generation.ends import describe_ends
from inference.models.source import resolve


def ends_as_comments(config: InferenceConfig) -> list[str]:
    """Returns YAML comments: each token that ends an answer, and its source. Empty if the model is not on this disk."""
    given = config.load_checkpoint or config.pretrained_model_dir
    if not given or not (given in DEMOS or Path(given).expanduser().exists()):
        return []
    try:
        source = resolve(config)
        ends = describe_ends(source, source.tokenizer())
    except InferenceError as error:
        return [f"# Tokens that end an answer: unknown ({error})"]
    return ["# Tokens that end an answer, and what says so:", *(f"#   {line}" for line in ends)]
