"""The tokenizers of ChatGLM2, ChatGLM3 and the first GLM-4 9B, whose own remote code is never run.

Source: tokenization_chatglm.py of THUDM/chatglm2-6b, chatglm3-6b and glm-4-9b. ChatGLM2 and 3 use a sentencepiece
model whose last piece is followed by special tokens, in the order of `SPECIAL`; GLM-4 has its own vocabulary. Every
text is preceded by `[gMASK]` and `sop` (GLM-4 spells it `<sop>`), without bos. A chat message is its role's token, a
line break and its text, each encoded separately and so with sentencepiece's leading space.
"""

from __future__ import annotations

from typing import Any

from inference.tokenizer.added_token import AddedToken

MASK, START = "[gMASK]", "sop"
SPECIAL = ("[MASK]", MASK, "[sMASK]", START, "eop")
# GLM-4's special tokens, which follow the last rank of its vocabulary (a tiktoken file).
GLM4_SPECIAL = ("<|endoftext|>", "[MASK]", MASK, "[sMASK]", "<sop>", "<eop>")
ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
PREFIXES = ((MASK, "<sop>"), (MASK, START))
CHAT = (
    "{% for message in messages %}{% if loop.first %}[gMASK]sop{% endif %}<|{{ message['role'] }}|>\n "
    "{{ message['content'] }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_COMMON: dict[str, Any] = {"prefixes": PREFIXES, "legacy": True, "add_eos_token": False, "padding_side": "left"}
_GLM2 = {**_COMMON, "appended": SPECIAL}
_GLM3 = {**_COMMON, "appended": SPECIAL + ROLES, "chat_template": CHAT}
# Defaults by the class named in tokenizer_config.json or in a MindFormers YAML: keys as in tokenizer_config.json, and
# our own `prefixes` and `appended`. The files override them.
CLASSES = {
    "ChatGLMTokenizer": _GLM3,
    "ChatGLM2Tokenizer": _GLM2,
    "ChatGLM3Tokenizer": _GLM3,
    "ChatGLM4Tokenizer": _COMMON,
}


def of_bytes(usual_class: str | None) -> str | None:
    """Returns the default class for a byte-level vocabulary: GLM-4's in place of ChatGLM's, any other unchanged."""
    return "ChatGLM4Tokenizer" if usual_class == "ChatGLMTokenizer" else usual_class


def appended_tokens(contents: tuple[str, ...], size: int) -> dict[int, AddedToken]:
    """Returns special tokens with ids from `size` on. `sop` and `eop` occur in words, so match only after [gMASK]."""
    return {
        size + index: AddedToken(content, special=True, after=None if "[" in content or "<" in content else MASK)
        for index, content in enumerate(contents)
    }
