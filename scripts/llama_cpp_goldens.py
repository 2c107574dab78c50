"""Makes the goldens from llama.cpp: how it splits text, and what it generates with real weights.

    python -m venv VENV && VENV/bin/pip install llama-cpp-python gguf numpy tokenizers
    VENV/bin/python scripts/llama_cpp_goldens.py splitting
    VENV/bin/python scripts/llama_cpp_goldens.py model FILE.gguf

`splitting` writes tests/goldens/llama_cpp/splitting.json:

    texts        hard texts
    vocabularies {byte_level, plain}: {tokens, merges} of a small vocabulary, whose merges cross any split
    ids          for each name of tokenizer.ggml.pre with its own rule: the ids of each text

`model` writes tests/goldens/llama_cpp/FILE.json: for each prompt, rendered with the model's chat template, its ids, the
ids that llama.cpp generates greedily with the weights dequantized to float32, the best minus the second best logit of
each, and log probabilities of the likeliest first tokens.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np

HERE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HERE))

from inference.tokenizer.pre_tokenizers import PRE_TOKENIZERS  # noqa: E402

GOLDENS = HERE / "tests" / "goldens" / "llama_cpp"
TEXTS = (
    "Hello world",
    "I'm you're WE'LL they'D isn'T it's'",
    "two  spaces   three\tfour \t five",
    " leading and trailing  ",
    "    ",
    "\n\n\r\n  \n x\n",
    "line\n\n  indented\n\tif (x) {\r\n}\n",
    "1234567890 12 123 1234 0.5 1,000,000",
    "v1.2.3-beta4 x86_64 2x4",
    "  1  22   333",
    "HelloWorld camelCase HTTPServer iPhone ABc aBC",
    "\u0395\u03bb\u03bb\u03ac\u03b4\u03b1 \u0410\u0411\u0432\u0433 \u00c9cole \u00e9COLE",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u4e00\u4e8c\u4e09 123\u4e2d\u6587",
    "\u3053\u3093\u306b\u3061\u306f\u3001\u4e16\u754c\u3002\u30ab\u30bf\u30ab\u30ca\u3000\u30c6\u30b9\u30c8",
    "\ud55c\uad6d\uc5b4 \ud14d\uc2a4\ud2b8 \u3131\u3134\u3137",
    "\u0627\u0644\u0639\u0631\u0628\u064a\u0629\u060c \u06d4 \u05e2\u05d1\u05e8\u05d9\u05ea",
    "\u0939\u093f\u0928\u094d\u0926\u0940 \u0964 \u0e44\u0e17\u0e22\u0e44\u0e17\u0e22 \u0e81\u0e82",
    "e\u0301 caf\u00e9 a\u030a \u0301x",
    "\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1ef\U0001f1f5 \U0001f44d\U0001f3fd!!",
    "\u00a0nbsp\u2003em\u200bzero\ufeffbom\u2028line",
    "\u0085next\u000bvt\u000cff\u001c",
    "!!! ??? ... --- ===> <=> $5 ^^ ~~ || `a`",
    "a/b//c \\n C:\\x /usr/bin/ http://x.y/z?q=1&r=2#s",
    "def f(x):\n    return x**2 + 1  # no\n",
    '{"a": [1, 2.50, null], \'b\': "c\\""}',
    "\u2018quoted\u2019 \u201cdouble\u201d \u2014 dash\u2026 \uff01\uff0c\uff1a",
    "price: 12\u20ac, 5\u00a3, \u00a59 \u00b1 \u00d7 \u221e \u2260",
    "\u0661\u0662\u0663\u0664 \u096a\u096b \u2167 \u00bd \u00b2\u00b3 \u2460",
    "12\u066345 1\u4e002 3a4b5",
    "\U0001d400\U0001d401 \ufb01 \u01c5 \u02b0 \u00aa",
    "don\u2019t o'clock rock'n'roll 'tis 'S",
    "tab\t\ttab  \t  end\t",
    "<sentinel:12> IMGIMGABZ <|x|>",
    "word,word.word;word:word",
    "(nested [brackets] {here}) <tags/>",
    "@user #tag $HOME %d *bold* _under_",
    "A B C a b c AB ab",
    "\r\r\n\n \r \n",
    "trailing newline\n",
    "trailing newlines\n\n\n   ",
    "\u3000\u3000\u5168\u89d2\u3000\u7a7a\u767d",
    "\u3105\u3106 \ufe30 \u8c48\uf900 \u4dbf \u9fff",
    "\U00020000\U0002a6d6 \U0002f800 mixed\u6f22",
    "\u1780\u17b6 \u1000\u102c \uaa60 \ua9e0 \u1100\u1161",
    "\u00b5 \u00df \u0130i \u017f 's\u017f \u212a",
    "100% 50\u00b0 #1 1st 2nd 3.14e-10",
    "ALLCAPS'LL ALLCAPS'S x'Y",
    "a  b   c    d     e",
    "?\n!\r\n. \n,/\n",
    "\ue000\uffff\U0010ffff\u0378",
)
PROMPTS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "List three colors.",
    "What is 12 plus 30?",
    "Explain what a compiler does, in one sentence.",
    "Translate to French: good morning.",
    "Who wrote Romeo and Juliet?",
    "Give me a synonym of fast.",
    "What do bees make?",
    "Name a planet with rings.",
    "Write a Python function that adds two numbers.",
    "Why is the sky blue?",
    "Complete: Once upon a time",
    "What comes after Tuesday?",
    "Is water wet? Answer briefly.",
    "Correct this: he go to school.",
    "How many legs does a spider have?",
    "Say hello in Spanish.",
    "What is the largest ocean?",
    "Give a title for a story about a fox.",
)
NEW_TOKENS = 32
LIKELIEST = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    commands.add_parser("splitting")
    commands.add_parser("model").add_argument("file", type=Path)
    given = parser.parse_args()
    GOLDENS.mkdir(parents=True, exist_ok=True)
    if given.command == "splitting":
        path, golden = GOLDENS / "splitting.json", splitting()
    else:
        path, golden = GOLDENS / f"{given.file.stem}.json", generation(given.file)
    path.write_text(json.dumps(golden, ensure_ascii=True, separators=(",", ":")) + "\n", encoding="utf-8")
    print(path, path.stat().st_size)


def splitting() -> dict[str, Any]:
    """See the module's docstring."""
    vocabularies = {"byte_level": byte_level_vocabulary(), "plain": plain_vocabulary()}
    # One name per rule.
    names = {rule: name for name, rule in reversed(PRE_TOKENIZERS.items())}
    ids = {}
    for rule, name in sorted(names.items(), key=lambda pair: pair[1]):
        vocabulary = vocabularies["byte_level" if rule.byte_level else "plain"]
        ids[name] = llama_cpp_ids(name, vocabulary)
    return {"texts": TEXTS, "vocabularies": vocabularies, "ids": ids}


def _training_texts() -> list[str]:
    """Return the hard texts and random concatenations of their pieces, so that merges cross the splits."""
    rng = random.Random(0)
    pieces = [text[start : start + 6] for text in TEXTS for start in range(0, len(text), 3)]
    return [*TEXTS * 3, *("".join(rng.choices(pieces, k=8)) for _ in range(300))]


def byte_level_vocabulary() -> dict[str, Any]:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1200, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_training_texts(), trainer)
    return _parts(tokenizer)


def plain_vocabulary() -> dict[str, Any]:
    from tokenizers import Tokenizer, models, trainers

    tokenizer = Tokenizer(models.BPE(byte_fallback=True))
    bytes_as_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    # Leave some characters out of the vocabulary, so that they are encoded as bytes.
    trainer = trainers.BpeTrainer(
        vocab_size=1000, special_tokens=bytes_as_tokens, limit_alphabet=150, show_progress=False
    )
    texts = [text.replace(" ", "\u2581").replace("\n", "\n") for text in _training_texts()]
    tokenizer.train_from_iterator([part for text in texts for part in text.split("\n") if part], trainer)
    return _parts(tokenizer)


def _parts(tokenizer: Any) -> dict[str, Any]:
    model = json.loads(tokenizer.to_str())["model"]
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in model["merges"]]
    return {"tokens": sorted(model["vocab"], key=model["vocab"].get), "merges": merges}


def llama_cpp_ids(name: str, vocabulary: dict[str, Any]) -> list[list[int]]:
    """Return the ids of each text."""
    from llama_cpp import Llama

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocabulary.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(name)
        writer.add_token_list(vocabulary["tokens"])
        writer.add_token_types([gguf.TokenType.NORMAL] * len(vocabulary["tokens"]))
        writer.add_token_merges(vocabulary["merges"])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(0)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        model = Llama(str(path), vocab_only=True, verbose=False)
        return [model.tokenize(text.encode(), add_bos=False, special=True) for text in TEXTS]


def generation(path: Path) -> dict[str, Any]:
    """See the module's docstring."""
    from llama_cpp import GGML_TYPE_F32, Llama

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        plain = Path(folder) / "float32.gguf"
        dequantize(path, plain)
        model = Llama(
            str(plain),
            n_ctx=256,
            n_threads=2,
            n_threads_batch=2,
            type_k=GGML_TYPE_F32,
            type_v=GGML_TYPE_F32,
            logits_all=True,
            verbose=False,
        )
        return {"prompts": [answer(model, prompt) for prompt in PROMPTS]}


def answer(model: Any, prompt: str) -> dict[str, Any]:
    """Return a prompt's entry in the golden file."""
    text = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    prompt_ids = model.tokenize(text.encode(), add_bos=False, special=True)
    model.reset()
    model.eval(prompt_ids)
    ids: list[int] = []
    leads: list[float] = []
    first: dict[str, float] = {}
    while len(ids) < NEW_TOKENS:
        logits = np.array(model.scores[model.n_tokens - 1], np.float64)
        order = np.argsort(-logits)[:LIKELIEST]
        if not ids:
            log_sum = logits.max() + np.log(np.exp(logits - logits.max()).sum())
            first = {str(token): round(float(logits[token] - log_sum), 6) for token in order}
        ids.append(int(order[0]))
        leads.append(round(float(logits[order[0]] - logits[order[1]]), 5))
        if model._model.token_get_text(ids[-1]) in ("<|im_end|>", "<|endoftext|>"):
            break
        model.eval([ids[-1]])
    return {"prompt": prompt, "prompt_ids": prompt_ids, "ids": ids, "leads": leads, "first": first}


def dequantize(source: Path, target: Path) -> None:
    """Copy a file with all tensors converted to float32."""
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture, use_temp_file=True)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, sub_type=inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
