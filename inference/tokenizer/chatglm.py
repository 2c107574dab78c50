"""What the tokenizers of ChatGLM2, ChatGLM3 and the first GLM-4 9B do in code of their authors, which is never run.

Source: tokenization_chatglm.py of THUDM/chatglm2-6b, chatglm3-6b and glm-4-9b. ChatGLM2 and 3 are a sentencepiece model
after whose last piece come special tokens, in the order of `SPECIAL`; GLM-4's tokenizer has its own. Before every text
stand `[gMASK]` and `sop`, which GLM-4 spells `<sop>`, and no bos. In a chat a message is its role's token, a line break
and its text, each encoded by itself, so with the space that sentencepiece puts before a text.
"""

from __future__ import annotations

from typing import Any

from inference.tokenizer.added_token import AddedToken

MASK, START = "[gMASK]", "sop"
SPECIAL = ("[MASK]", MASK, "[sMASK]", START, "eop")
# GLM-4's, which follow the last rank of its vocabulary, a file of tiktoken's.
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
# By the class that a tokenizer_config.json or a MindFormers YAML names: keys as in tokenizer_config.json, and two of
# ours, `prefixes` and `appended`. What the files say outranks them.
CLASSES = {
    "ChatGLMTokenizer": _GLM3,
    "ChatGLM2Tokenizer": _GLM2,
    "ChatGLM3Tokenizer": _GLM3,
    "ChatGLM4Tokenizer": _COMMON,
}


def of_bytes(usual_class: str | None) -> str | None:
    """The class that is usual for a vocabulary of bytes, of a family with both: GLM-4's in place of ChatGLM's."""
    return "ChatGLM4Tokenizer" if usual_class == "ChatGLMTokenizer" else usual_class


def appended_tokens(contents: tuple[str, ...], size: int) -> dict[int, AddedToken]:
    """Special tokens with the ids from `size` on. `sop` and `eop`, which words hold, are read behind [gMASK] alone."""
    return {
        size + index: AddedToken(content, special=True, after=None if "[" in content or "<" in content else MASK)
        for index, content in enumerate(contents)
    }
