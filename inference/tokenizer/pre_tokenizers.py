"""llama.cpp's pre-tokenizers for byte pair encoding, by their names in a GGUF file's `tokenizer.ggml.pre`.

Knows names and regular expressions; knows nothing about files or vocabularies.

Source: llama.cpp (github.com/ggml-org/llama.cpp, src/llama-vocab.cpp and src/unicode.cpp), as of llama-cpp-python
0.3.36. The expressions here are written for Oniguruma. If llama.cpp's implementation differs from the model's
tokenizer.json, follow llama.cpp: it distinguishes upper and lower case only in ASCII, and normalizes nothing.
`whitespace` is omitted because only embedding models use its kind of tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_CONTRACTIONS = r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SPACES = r"\s+(?!\S)|\s+"
_LINES = r"\s*[\r\n]+|" + _SPACES
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|" + _LINES

GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|" + _SPACES
LLAMA3 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_SYMBOLS}"
QWEN2 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}|{_SYMBOLS}"
# Upper and lower case letters in ASCII; any other letter matches both.
_UPPER, _LOWER = r"(?:(?=\p{L})[^a-z])", r"(?:(?=\p{L})[^A-Z])"
_UPPER_MARKS, _LOWER_MARKS = r"(?:(?=[\p{L}\p{M}])[^a-z])", r"(?:(?=[\p{L}\p{M}])[^A-Z])"


def _cased(upper: str, lower: str, end: str = "") -> str:
    """Builds the expression of a word that begins with its capitals and is followed by `end`."""
    first = r"[^\r\n\p{L}\p{N}]?"
    return f"{first}{upper}*{lower}+{end}|{first}{upper}+{lower}*{end}"


_SLASHED = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _LINES
_TEKKEN = rf"{_cased(_UPPER, _LOWER)}|\p{{N}}|{_SLASHED}"
_GPT4O = rf"{_cased(_UPPER, _LOWER, f'(?:{_CONTRACTIONS})?')}|\p{{N}}{{1,3}}|{_SLASHED}"
_GRANITE = rf"{_cased(_UPPER_MARKS, _LOWER_MARKS, f'(?:{_CONTRACTIONS})?')}|\p{{N}}{{1,3}}|{_SLASHED}"
_MARKED_WORD = rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+(?:{_CONTRACTIONS})?"
_AYA = rf"{_MARKED_WORD}|\p{{N}}{{1,3}}|{_SLASHED}"
_YOUTU = rf"{_MARKED_WORD}|\p{{N}}|{_SLASHED}"
_QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_LINES}"
)
_EXAONE_MOE = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]?|\s*[\r\n]|{_SPACES}"
)
_BAILING = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]|{_SPACES}"
_SEED = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_LINES}"
_JAIS2 = (
    rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+"
    + "".join(rf"|\s{{{count}}}(?!\S)" for count in (512, 256, 128, 64, 32, 16, 8, 4))
    + r"|\s{1,2}(?!\S)|\s"
)
# Splits numbers into groups of three from the right. Text before the first group stays with it, as in llama.cpp.
_THREES_FROM_END = r"\P{N}*\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"
_PUNCTUATED = (
    r"[!\"#$%\&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+"
)
_DEEPSEEK3 = rf"{_PUNCTUATED}[\r\n]*|{_LINES}"
_SPARK = rf"{_PUNCTUATED}|[\r\n]|{_SPACES}"
_WIDE_PUNCTUATION = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3001\u3002]+"
_CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
# llama.cpp removes white space from these ranges first.
_CJK_WIDE = r"[\x{4E00}-\x{9FA5}\x{0800}-\x{4E00}\x{AC00}-\x{D7FF}&&[^\s]]+"
_ASIAN = (
    r"[\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{8C48}-\x{D7FF}\x{E000}-\x{FAFF}\x{3040}-\x{30FF}\x{FF65}-\x{FF9F}"
    r"\x{2F00}-\x{2FDF}\x{0E40}-\x{0EFF}\x{1780}-\x{17FF}\x{1000}-\x{109F}\x{AA60}-\x{AA7F}\x{A9E0}-\x{A9FF}"
    r"\x{AC00}-\x{D7AF}\x{1100}-\x{11FF}]+"
)
_YOUTU_SCRIPTS = (
    r"[\x{AC00}-\x{D7A3}\x{3131}-\x{318E}]+"
    r"|[\x{FF01}\x{2026}\x{201C}\x{201D}\x{2018}\x{2019}\x{2014}\x{FF1A}\x{FF1B}\x{FF0C}\x{3001}-\x{303F}"
    r"\x{FE30}-\x{FE4F}]+|[\x{3105}-\x{312F}]+|[\x{4E00}-\x{9FA5}\x{3040}-\x{30FF}]+"
)
_HAN = (
    r"\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2B73F}\x{2B740}-\x{2B81F}\x{2B820}-\x{2CEAF}"
    r"\x{2CEB0}-\x{2EBEF}\x{F900}-\x{FAFF}\x{2F800}-\x{2FA1F}"
)
_KIMI = rf"[{_HAN}]+|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}&&[^{_HAN}]]+(?:{_CONTRACTIONS})?|\p{{N}}{{1,3}}|{_SYMBOLS}"
_BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
# Letters that have upper and lower case, as listed in DeepSeek's tokenizer.
_CASED_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481"
    "\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b"
    "\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b"
    "\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb"
    "\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"
    "\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4"
    "\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf"
    "\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df"
    "\U0001e900-\U0001e943"
)


@dataclass(frozen=True)
class PreTokenizer:
    """A rule for splitting text.

    Args:
        stages: regular expressions. Each splits the parts from the previous stage into its matches and the text
            between them.
        whole_words: use a part that is itself a token without applying merges.
        add_bos: add bos before a text unless the file specifies otherwise.
        byte_level: tokens use GPT-2's spelling of bytes. Otherwise they are plain text, and `<0xE3>` is a byte.
        marks_spaces: tokens spell a space as in sentencepiece.
    """

    stages: tuple[str, ...]
    whole_words: bool = False
    add_bos: bool = False
    byte_level: bool = True
    marks_spaces: bool = False


_BY_LINE = r"[^\n]+|\n+"
DEFAULT = "default"
_RULES: tuple[tuple[PreTokenizer, str], ...] = (
    (PreTokenizer((r"[\p{P}$+<=>^~|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")), DEFAULT),
    (
        PreTokenizer((LLAMA3,), whole_words=True, add_bos=True),
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
    ),
    (PreTokenizer((LLAMA3,), whole_words=True), "glm4 glm5"),
    (PreTokenizer((LLAMA3,)), "dbrx smaug-bpe chatglm-bpe"),
    (
        PreTokenizer((r"\p{N}{1,3}", rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}+|{_SYMBOLS}"), whole_words=True),
        "minicpm5",
    ),
    (PreTokenizer((_JAIS2,)), "jais-2"),
    (
        PreTokenizer(
            (r"[\r\n]", rf"\s?[{_CASED_LETTERS}]+", _WIDE_PUNCTUATION, r"\s+\z", _CJK_WIDE, r"\p{N}+"),
        ),
        "deepseek-llm",
    ),
    (PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK_WIDE, r"\p{N}")), "deepseek-coder"),
    (PreTokenizer((r"\p{N}{1,3}", _CJK, _DEEPSEEK3)), "deepseek-v3 hunyuan-dense joyai-llm hy_v4"),
    (PreTokenizer((r"\p{N}{1,3}", _CJK, _SPARK, r"\p{N}")), "spark2_5"),
    (PreTokenizer((_YOUTU_SCRIPTS, _YOUTU), whole_words=True), "youtu"),
    (PreTokenizer((r"[\p{P}$+<=>^~|`]+", GPT2, "[0-9][0-9][0-9]")), "falcon"),
    (
        PreTokenizer((r"\p{N}", GPT2)),
        "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
    ),
    (
        PreTokenizer((GPT2,)),
        "gpt-2 phi-2 mpt olmo jais trillion granite-docling exaone4 jina-es jina-de jina-v1-en jina-v2-es jina-v2-de "
        "jina-v2-code gigachat a.x-4.0 mellum modern-bert roberta-bpe",
    ),
    (PreTokenizer((QWEN2,)), "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2"),
    (PreTokenizer((_QWEN35,)), "qwen35"),
    (PreTokenizer((_BLOOM,)), "bloom poro-chat gpt3-finnish"),
    (PreTokenizer((_BLOOM, r"\p{N}")), "viking"),
    (PreTokenizer((_TEKKEN,), whole_words=True, add_bos=True), "tekken"),
    (
        PreTokenizer(
            (
                "<sentinel:[0-9]+>",
                "IMGIMG[A-I]{1,4}Z",
                r"[\t\n]|    |  ",
                r"\p{N}",
                r"[\p{P}!-/:-@\[-`{-~]",
                GPT2,
            ),
            add_bos=True,
        ),
        "chameleon",
    ),
    (PreTokenizer((_GPT4O,)), "gpt-4o llama4 kanana2 talkie minimax-m2"),
    (PreTokenizer((_GRANITE,), whole_words=True), "granite-embed-multi-97m"),
    (PreTokenizer((_THREES_FROM_END, _AYA)), "tiny_aya cohere2moe"),
    (PreTokenizer((_KIMI,)), "kimi-k2"),
    (PreTokenizer((r"\p{N}+", "(?=(?:[0-9]{3})+(?![0-9]))")), "superbpe"),
    (PreTokenizer((_BAILING,)), "bailingmoe bailingmoe2 llada-moe"),
    (PreTokenizer((_SEED,)), "seed-coder"),
    (PreTokenizer((rf"{_WORD}|\p{{N}}|{_SYMBOLS}",)), "ufakzeka"),
    (PreTokenizer((_THREES_FROM_END, _ASIAN, _DEEPSEEK3)), "afmoe"),
    (PreTokenizer((_BY_LINE, QWEN2)), "laguna"),
    (PreTokenizer((_EXAONE_MOE,)), "exaone-moe"),
    (PreTokenizer((_BY_LINE,), byte_level=False, marks_spaces=True), "sarvam-moe"),
    (
        PreTokenizer((_BY_LINE,), add_bos=True, byte_level=False, marks_spaces=True),
        "gemma4 granite-embed-multi-311m",
    ),
)
PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {name: rule for rule, names in _RULES for name in names.split()}
