"""The section `pipeline.preprocess`: what happens to rows before a pipeline's models see them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from inference.config.values import Count, Free, NonNegative, OptionalText, Section, Texts


class NormalizeSettings(Section):
    """`pipeline.preprocess.normalize`: one spelling for equal texts."""

    form: Literal["NFC", "NFD", "NFKC", "NFKD"] | None = Field(None, description="Unicode form of the prompts.")
    whitespace: bool = Field(
        False,
        description="Make each run of spaces one space, strip lines, and keep one empty line at most.",
    )


class MaskSettings(Section):
    """`pipeline.preprocess.mask`: personal data that is replaced by its kind, such as [EMAIL]."""

    kinds: Texts = Field((), description="Of the known patterns: email, phone, card, iban, ip, url.")
    patterns: Free = Field(default_factory=dict, description="Regular expressions of your own, by name.")


class CutSettings(Section):
    """`pipeline.preprocess.truncate`: the longest prompt, counted by the model's tokenizer."""

    tokens: Count | None = Field(None, description="Tokens that a prompt keeps; all if unset.")
    side: Literal["left", "right"] = Field("right", description="Side on which a longer prompt is cut.")


class ChunkSettings(Section):
    """`pipeline.preprocess.chunk`: long prompts in pieces, each of which is answered separately."""

    tokens: Count | None = Field(None, description="Tokens of a chunk, at most; no chunks if unset.")
    overlap: NonNegative = Field(0, description="Tokens at the end of a chunk with which the next one begins.")
    join: str = Field("\n", description="Text between the answers of a prompt's chunks.")


class PreprocessSettings(Section):
    """`pipeline.preprocess`: steps before the models, which run in this order."""

    normalize: NormalizeSettings = Field(default_factory=NormalizeSettings, description="Equal spelling.")
    mask: MaskSettings = Field(default_factory=MaskSettings, description="Masks of personal data.")
    filter: OptionalText = Field(
        None, description="Jinja expression over prompt, row, words and characters; rows where it is false are dropped."
    )
    truncate: CutSettings = Field(default_factory=CutSettings, description="Longest prompt.")
    deduplicate: bool = Field(False, description="Drop rows whose prompt an earlier row has.")
    chunk: ChunkSettings = Field(default_factory=ChunkSettings, description="Prompts in pieces.")
