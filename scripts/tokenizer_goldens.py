"""Makes the golden tokenizers of tests/goldens/tokenizers, and transformers' results for them.

Part of make_goldens.py. Each directory has the files of a small Hugging Face tokenizer, trained on text that
this script generates, and golden.json:

    prefix  ids                                     ids that add_special_tokens puts before every text
    encode  [{text, ids}]                           without these
    decode  [{ids, text, text_with_special}]        skip_special_tokens True and False
    chat    [{messages, arguments, text, ids}]      the chat template's text and its ids

Known differences, kept out of the files: for sentencepiece models, transformers drops one leading space of a
text (the ids here are then sentencepiece's own, which preserve the space), and it replaces a whole run of byte
tokens if one byte is wrong (the files keep whole characters, as sentencepiece does).
"""

from __future__ import annotations

import io
import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sentencepiece
import transformers
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

VOCABULARY = (
    "the a of to and in was said there once upon time little big girl boy dog cat house tree river "
    "garden friend mother father happy sad walked found loved looked hello world model token answer "
    "question der die und Haus"
)
WORDS = VOCABULARY.split()
OTHER = (
    *("こんにちは、世界。", "これはペンです。"),
    *("def add(x, y):\n    return x + y\n", "Preis: 12,50 €", "naïve café"),
)
TEXTS = (
    "",
    "Hello",
    "Once upon a time there was a little girl.",
    "two  spaces   three",
    "tail space ",
    "tail spaces   ",
    " leading",
    "   leading spaces",
    " ",
    "    ",
    "\n",
    "line one\nline two\n\nline four\t\ttabs\r\n",
    "def add(x, y):\n    return x + y\n",
    "1234567890 3.14159 -42",
    "I'm, you're, we'll: it's DON'T",
    "こんにちは、世界。これは日本語の漢字です。",
    "naïve café Ångström 12,50 €",
    "e\u0301 decomposed, \u00e9 composed",
    "emoji 😀 and a family 👨‍👩‍👧‍👦 and a flag 🇯🇵 and a skin 👍🏽",
    "mixed 日本 and English 混ぜる🙂text",
    "non\u00a0breaking\u200bzero\ufeffwidth",
    "\u0000control\u0001\u007f",
    "<0x41> <0xE3>",
    "Ġ ▁ literal marks",
    "a" * 70,
    "العربية עברית हिन्दी ไทย",
)
CHAT_TEMPLATE = """\
{%- if tools %}
    {{- '<|im_start|>system\\nTools: ' + (tools | tojson) + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'hidden' %}
        {%- continue %}
    {%- endif %}
    {%- if loop.first and message.role == 'assistant' %}
        {{- raise_exception('the assistant cannot speak first') }}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{ message.content | trim }}{% endgeneration %}
    {%- else %}
        {{- message.content }}
    {%- endif %}
    {{- '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
TURN_TEMPLATE = """\
{{ bos_token }}
{% for message in messages %}
<|start|>{{ message['role'] }}<|stop|>

{{ message['content'] | trim }}<|eot|>
{% endfor %}
{% if add_generation_prompt %}
<|start|>assistant<|stop|>

{% endif %}
"""
MARK_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TOOL = {"type": "function", "function": {"name": "add", "description": "Adds <two> & 'three' 数"}}
CHATS: tuple[tuple[list[dict[str, str]], dict[str, Any]], ...] = (
    ([{"role": "user", "content": "Hello"}], {"add_generation_prompt": True}),
    (
        [
            {"role": "user", "content": "  What is 2+2?\n"},
            {"role": "assistant", "content": " 4 "},
            {"role": "user", "content": "日本 👨‍👩‍👧 <b>&amp;</b>"},
        ],
        {"add_generation_prompt": True},
    ),
    (
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there"}],
        {"add_generation_prompt": False},
    ),
)
CHATS_OF_MANY_PARTS = (
    ([{"role": "user", "content": "add"}], {"add_generation_prompt": True, "tools": [TOOL]}),
    ([{"role": "user", "content": "think"}], {"add_generation_prompt": True, "enable_thinking": False}),
    (
        [{"role": "user", "content": "one"}, {"role": "hidden", "content": "no"}],
        {"add_generation_prompt": False},
    ),
)
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")


# --- training
# ---------------------------------------------------------------------------------------------------


def training_text() -> list[str]:
    rng = random.Random(0)
    lines = [" ".join(rng.choices(WORDS, k=9)).capitalize() + rng.choice(".!?") for _ in range(800)]
    return lines + list(OTHER) * 40


def sentencepiece_model() -> bytes:
    """Train a BPE model like Llama 2's, with control and user-defined symbols."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(training_text()),
        model_writer=model,
        model_type="bpe",
        vocab_size=500,
        byte_fallback=True,
        character_coverage=0.995,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        control_symbols=["<|user|>", "<|assistant|>", "<|end|>"],
        user_defined_symbols=["<sep>", "<|hint|>"],
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def byte_level(split: str, vocab_size: int, ignore_merges: bool) -> Tokenizer:
    """Train byte-level BPE like that of Llama 3 and Qwen."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_text(), trainer)
    return tokenizer


# --- directories
# ------------------------------------------------------------------------------------------------


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def added(content: str, **flags: bool) -> dict[str, Any]:
    base = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {"content": content} | base | flags


def llama_config(**changes: Any) -> dict[str, Any]:
    common = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    common = {"tokenizer_class": "LlamaTokenizer"} | common
    return common | {"add_bos_token": True, "add_eos_token": False, "legacy": False} | changes


def write_spm(directory: Path) -> None:
    """Write only tokenizer.model; tokens beyond it come from tokenizer_config.json."""
    (directory / "tokenizer.model").write_bytes(sentencepiece_model())
    tokens = {
        "0": added("<unk>"),
        "1": added("<s>"),
        "2": added("</s>"),
        "7": added("<|hint|>"),
        "500": added("<pad>"),
        "501": added("<note>", special=False, lstrip=True, rstrip=True),
    }
    config = llama_config(added_tokens_decoder=tokens, pad_token="<pad>", chat_template=MARK_TEMPLATE)
    write_json(directory / "tokenizer_config.json", config)


def write_spm_and_json(directory: Path) -> None:
    """Write both files, as transformers 4 does for Llama 2."""
    (directory / "tokenizer.model").write_bytes(sentencepiece_model())
    write_json(directory / "tokenizer_config.json", llama_config())
    special = {"bos_token": added("<s>"), "eos_token": "</s>", "unk_token": "<unk>"}
    write_json(directory / "special_tokens_map.json", special)
    backend = transformers.AutoTokenizer.from_pretrained(directory).backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    state = json.loads(backend.to_str())
    state["pre_tokenizer"] = None
    (directory / "tokenizer.json").write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")


def write_qwen(directory: Path) -> None:
    """Write byte-level BPE with added tokens, some not special, and named chat templates."""
    tokenizer = byte_level(QWEN_SPLIT, 360, ignore_merges=False)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokens = [
        *(AddedToken(content, special=True) for content in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")),
        *(AddedToken(content, normalized=False) for content in ("<think>", "</think>", "<日本>")),
    ]
    tokenizer.add_tokens(tokens)
    (directory / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(tokenizer.token_to_id(token.content)): added(token.content, special=token.special) for token in tokens
        },
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "chat_template": [
            {"name": "default", "template": CHAT_TEMPLATE},
            {"name": "short", "template": "{{ messages[-1].content }}"},
        ],
    }
    write_json(directory / "tokenizer_config.json", config)


def write_llama3(directory: Path) -> None:
    """Write byte-level BPE whose post-processor adds the first token, and a chat_template.jinja."""
    tokenizer = byte_level(LLAMA3_SPLIT, 360, ignore_merges=True)
    tokenizer.add_special_tokens(["<|begin|>", "<|end_of_text|>", "<|start|>", "<|stop|>", "<|eot|>"])
    template = processors.TemplateProcessing(
        single="<|begin|> $A",
        pair="<|begin|> $A <|begin|>:1 $B:1",
        special_tokens=[("<|begin|>", tokenizer.token_to_id("<|begin|>"))],
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    (directory / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin|>",
        "eos_token": "<|eot|>",
        "clean_up_tokenization_spaces": True,
    }
    write_json(directory / "tokenizer_config.json", config)
    (directory / "chat_template.jinja").write_text(TURN_TEMPLATE, encoding="utf-8")


def write_flags(directory: Path) -> None:
    """Write byte-level BPE whose tokenizer_config.json gives added tokens other flags than tokenizer.json.

    One token is listed only in additional_special_tokens.
    """
    tokenizer = byte_level(LLAMA3_SPLIT, 330, ignore_merges=False)
    tokenizer.normalizer = normalizers.NFC()
    names = ("<|end|>", "<left>", "<right>", "<word>", "<plain>", "<normal>")
    tokenizer.add_tokens([AddedToken(name, special=name != "<normal>", normalized=False) for name in names])
    (directory / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    flags = ({}, {"lstrip": True}, {"rstrip": True}, {"single_word": True}, {"special": False}, {"special": True})
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|end|>",
        "additional_special_tokens": ["<extra>"],
        "added_tokens_decoder": {
            str(tokenizer.token_to_id(name)): added(name, **own) for name, own in zip(names, flags, strict=True)
        },
        "clean_up_tokenization_spaces": False,
        "chat_template": TURN_TEMPLATE,
    }
    write_json(directory / "tokenizer_config.json", config)


# --- records
# ----------------------------------------------------------------------------------------------------


def texts_of(reference: Any) -> list[str]:
    """Return the common texts, and some that contain this tokenizer's special tokens."""
    tokens = sorted(reference.get_added_vocab(), key=reference.get_added_vocab().get)
    inside = [text for a in tokens for text in (f"a{a}b", f"a {a} b", f"{a}{tokens[0]}\n{a}")]
    return [*TEXTS, *inside, "".join(f"{token}日" for token in tokens)]


def encode_records(reference: Any, model: sentencepiece.SentencePieceProcessor | None) -> list[dict[str, Any]]:
    records = []
    for text in texts_of(reference):
        if model is not None and text.startswith((" ", "▁")):
            ids = model.encode(text)
        else:
            ids = reference.encode(text, add_special_tokens=False)
            if reference.encode(text) != prefix_of(reference) + ids:
                raise SystemExit(f"{text!r} is encoded with another prefix")
        records.append({"text": text, "ids": ids})
    return records


def prefix_of(reference: Any) -> list[int]:
    return list(reference.encode(""))


def half_valid(reference: Any, ids: list[int]) -> bool:
    """Whether a run of byte tokens has both whole characters and invalid bytes."""
    data, known = b"", [reference.convert_ids_to_tokens(token_id) or "" for token_id in ids]
    for token in [*known, ""]:
        if re.fullmatch(r"<0x[0-9A-F]{2}>", token):
            data += bytes([int(token[3:5], 16)])
            continue
        if data.decode("utf-8", "ignore") and "\ufffd" in data.decode("utf-8", "replace"):
            return True
        data = b""
    return False


def decode_records(reference: Any, encoded: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return decoded texts truncated at either end, texts with special tokens, and random ids, some out of range."""
    rng = random.Random(1)
    whole = [row["ids"] for row in encoded[: len(TEXTS)]]
    rows = [ids[: len(ids) // 2] for ids in whole] + [ids[len(ids) // 3 :] for ids in whole]
    rows += [prefix_of(reference) + row["ids"] for row in encoded[len(TEXTS) :]]
    rows += [[rng.randrange(len(reference) + 9) for _ in range(rng.randrange(1, 12))] for _ in range(60)]
    return [
        {
            "ids": ids,
            "text": reference.decode(ids, skip_special_tokens=True),
            "text_with_special": reference.decode(ids, skip_special_tokens=False),
        }
        for ids in rows
        if not half_valid(reference, ids)
    ]


def chat_records(reference: Any, name: str) -> list[dict[str, Any]]:
    if reference.chat_template is None:
        return []
    records = []
    for messages, arguments in CHATS + (CHATS_OF_MANY_PARTS if name == "qwen" else ()):
        text = reference.apply_chat_template(messages, tokenize=False, **arguments)
        ids = reference.apply_chat_template(messages, tokenize=True, return_dict=False, **arguments)
        records.append({"messages": messages, "arguments": arguments, "text": text, "ids": ids})
    return records


def make_tokenizer(name: str, directory: Path) -> None:
    """Write one tokenizer and its records to `directory`."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    TOKENIZERS[name](directory)
    # For a Llama tokenizer.json the plain class uses the file unchanged; the family's own class rebuilds it.
    both = name == "spm_and_json"
    kind = transformers.PreTrainedTokenizerFast if both else transformers.AutoTokenizer
    reference = kind.from_pretrained(directory)
    path = directory / "tokenizer.model"
    model = None if both or not path.exists() else sentencepiece.SentencePieceProcessor(model_file=str(path))
    encoded = encode_records(reference, model)
    golden = {
        "prefix": prefix_of(reference),
        "encode": encoded,
        "decode": decode_records(reference, encoded),
        "chat": chat_records(reference, name),
    }
    rows = [f'"{key}": [\n' + ",\n".join(map(dumps, value)) + "\n]" for key, value in golden.items()]
    (directory / "golden.json").write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")


def dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


TOKENIZERS: dict[str, Callable[[Path], None]] = {
    "spm": write_spm,
    "spm_and_json": write_spm_and_json,
    "qwen": write_qwen,
    "llama3": write_llama3,
    "flags": write_flags,
}
