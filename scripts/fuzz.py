"""Feeds mutated files to the loaders: each must load or be rejected in one line, within time and memory limits.

    python scripts/fuzz.py                          # 200 cases of each kind
    python scripts/fuzz.py --count 2000 gguf ckpt   # only these kinds
    python scripts/fuzz.py --seed 7 --case 31 gguf  # repeat one case, with its traceback; --keep DIR keeps its files

A case is a model (or a table of prompts, a YAML, a save file) of this repository with one file mutated: bytes are
flipped, cut, repeated or replaced by extreme numbers, and JSON values are replaced by values of another type or range.
The same seed gives the same cases. A fault is an error that is not an `InferenceError`, a case that takes longer than
--seconds, or a process that dies or needs more than --memory. Exit code 1 if there is a fault.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import multiprocessing
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from inference.checkpoint.open import open_checkpoint  # noqa: E402
from inference.config import load_config  # noqa: E402
from inference.errors import InferenceError  # noqa: E402
from inference.inputs.rows import open_rows  # noqa: E402
from inference.jobs.save_file import SaveFile  # noqa: E402
from inference.models.source import resolve  # noqa: E402
from inference.tokenizer import load_tokenizer  # noqa: E402
from inference.tokenizer.chat import render_chat  # noqa: E402

GOLDENS, DEMO = ROOT / "tests" / "goldens", ROOT / "inference" / "demo"
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}{% if message.content is string %}"
    "{{ message.content | trim }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
ROWS = (
    '{"custom_id": "a", "prompt": "Once upon a time"}\n'
    '{"custom_id": "b", "messages": [{"role": "user", "content": "Hello"}], "temperature": 0.5}\n'
    '{"prompt": "x", "max_new_tokens": 3, "seed": 4, "stop": ["\\n"]}\n'
)
# Words that occur in the files, so that mutations pass the first checks.
WORDS = (
    "null",
    "true",
    "-1",
    "1e999",
    "[]",
    "{}",
    '""',
    "99999999999999999999",
    "{{",
    "%}",
    "for",
    "\\ud800",
    "<s>",
    "!!",
)
NUMBERS = (0, 1, 2, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
HOSTILE: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 1.5, 32, 2**31, 2**63, 2**64, 10**9, 10**30, 1e-300, math.inf, -math.inf, math.nan,
    "", "x", "\ud800", "\0", "x" * 10_000, "../../etc/passwd", [], [[]], {}, {"a": 1}, [1, "a", None], [2**64], [-1],
    [1.5], {"content": None}, "linear",
)  # fmt: skip


def mutated_bytes(data: bytes, chance: random.Random) -> bytes:
    """Return the data with one to four changes."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        if not changed:
            changed += b"\0"
        # Headers come first, and damage matters most there.
        at = chance.randrange(min(len(changed), chance.choice((16, 256, 4096, len(changed)))))
        change = chance.randrange(7)
        if change == 0:
            changed[at] ^= 1 << chance.randrange(8)
        elif change == 1:
            changed[at] = chance.randrange(256)
        elif change == 2:
            del changed[at:]
        elif change == 3:
            changed[at : at + 8] = struct.pack(chance.choice("<>") + "Q", chance.choice(NUMBERS))
        elif change == 4:
            changed[at : at + 4] = struct.pack("<I", chance.choice(NUMBERS) & 0xFFFFFFFF)
        elif change == 5:
            changed[at:at] = changed[at : at + chance.randrange(1, 64)] * chance.choice((1, 2, 100))
        else:
            changed[at:at] = chance.choice(WORDS).encode()
    return bytes(changed)


def mutated_json(data: bytes, chance: random.Random) -> bytes:
    """Replace, remove or duplicate one to three values; in a third of the cases, change bytes instead."""
    if chance.random() < 0.33:
        return mutated_bytes(data, chance)
    values = json.loads(data)
    for _ in range(chance.choice((1, 1, 2, 3))):
        values = _mutated_value(values, chance)
    return json.dumps(values).encode()


def _mutated_value(values: Any, chance: random.Random) -> Any:
    places = list(_places(values))
    if not places:
        return deepcopy(chance.choice(HOSTILE))
    holder, key = chance.choice(places)
    change = chance.randrange(6)
    if change == 0:
        del holder[key]
    elif change == 1 and isinstance(holder, dict):
        holder[chance.choice(("", "type", "\0", "content", "x" * 300))] = deepcopy(holder[key])
    elif change == 2:
        holder[key] = [holder[key]]
    elif change == 3 and type(holder[key]) in (int, float):
        holder[key] = chance.choice((-1, 0, 0.5, 2, 1000, 10**9, -0.0)) * holder[key]
    else:
        holder[key] = deepcopy(chance.choice(HOSTILE))
    return values


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each value's container and key; for long lists, only the first few."""
    items = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    for key, inner in items[:50]:
        yield value, key
        yield from _places(inner)


def mutated_header(data: bytes, chance: random.Random) -> bytes:
    """Mutate a safetensors file, either its header as JSON or the whole file as bytes."""
    if chance.random() < 0.4:
        return mutated_bytes(data, chance)
    size = int.from_bytes(data[:8], "little")
    header = mutated_json(data[8 : 8 + size], chance)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def of_model(directory: Path) -> None:
    """Read a model's sizes and every tensor."""
    pairs = resolve(load_config({"load_checkpoint": str(directory)})).pairs() or []
    for tensor, _ in pairs:
        tensor.read_into(np.empty(tensor.shape, np.float32))


def of_checkpoint(path: Path) -> None:
    """Read every tensor."""
    for tensor in open_checkpoint(path).values():
        tensor.read_into(np.empty(tensor.shape, np.float32))


def of_gguf(path: Path) -> None:
    """Read a model and its tokenizer from one file."""
    of_model(path)
    of_tokenizer(path)


def of_tokenizer(directory: Path) -> None:
    """Encode, decode, and render a chat if there is a template."""
    tokenizer = load_tokenizer(directory, settings={})
    ids = tokenizer.encode("Once upon a time, \U0001f600 caf\u00e9\n")
    tokenizer.decode(ids)
    tokenizer.decode([0, 1, 2, 3, 10**6])
    if tokenizer.config.chat_templates:
        tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}])


def of_template(path: Path) -> None:
    """Render a template."""
    text = path.read_bytes().decode("utf-8", "replace")
    render_chat(text, [{"role": "user", "content": "Hello"}], {"add_generation_prompt": True, "bos_token": "<s>"})


def of_yaml(path: Path) -> None:
    """Merge and validate a config."""
    load_config(path)


def of_rows(path: Path) -> None:
    """Parse every row; a row's own error becomes its record."""
    for row in open_rows([str(path)]):
        try:
            row.parse()
        except InferenceError:
            continue


def of_adapter(directory: Path) -> None:
    """Read an adapter and merge it."""
    settings = {"load_checkpoint": str(GOLDENS / "llama2_gqa"), "adapters": {"a": str(directory)}}
    resolve(load_config(settings))
    of_merged = resolve(load_config({**settings, "engine": {"merge_adapter": "a"}})).pairs() or []
    for tensor, _ in of_merged:
        tensor.read_into(np.empty(tensor.shape, np.float32))


def of_save_file(directory: Path) -> None:
    """Resume a job."""
    identity = {"model": "demo", "rows": 3}
    SaveFile(directory / "out.jsonl", identity, resume=True, retry=True).close()


def _copy(source: Path, *names: str) -> Callable[[Path], None]:
    def make(directory: Path) -> None:
        for name in names:
            shutil.copy(source / name, directory / name)

    return make


def _make_index(directory: Path) -> None:
    shutil.copytree(GOLDENS / "llama2_gqa", directory, dirs_exist_ok=True)


def _make_gguf(directory: Path) -> None:
    sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests" / "helpers")]
    from gguf_files import fields_of, write_gguf

    write_gguf(DEMO, directory / "demo.gguf", "Q8_0", fields_of(load_tokenizer(DEMO), DEMO))


def _make_ckpt(directory: Path) -> None:
    """Write a MindSpore checkpoint, as described in `inference/checkpoint/mindspore_ckpt.py`."""

    def field(number: int, data: bytes) -> bytes:
        return bytes([number << 3 | 2]) + _varint(len(data)) + data

    made = b""
    for name, tensor in open_checkpoint(GOLDENS / "llama2_mha").items():
        values = np.empty(tensor.shape, np.float32)
        tensor.read_into(values)
        dims = b"".join(bytes([1 << 3]) + _varint(size) for size in tensor.shape)
        inner = dims + field(2, b"Float32") + field(3, values.tobytes())
        made += field(1, field(1, name.encode()) + field(2, inner))
    (directory / "model.ckpt").write_bytes(made)


def _varint(value: int) -> bytes:
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*made, value])


def _make_yaml(directory: Path) -> None:
    text = (ROOT / "configs" / "llama2" / "predict_llama2_7b.yaml").read_text(encoding="utf-8")
    (directory / "predict.yaml").write_text(
        text.replace("base_config: ../base/predict_base.yaml\n", ""), encoding="utf-8"
    )


def _make_template(directory: Path) -> None:
    (directory / "chat_template.jinja").write_text(TEMPLATE)


def _make_rows(directory: Path) -> None:
    (directory / "rows.jsonl").write_text(ROWS)


def _make_save_file(directory: Path) -> None:
    identity = {"model": "demo", "rows": 3}
    with_lines = SaveFile(directory / "out.jsonl", identity)
    with_lines.append(
        [json.dumps({"row": row, "custom_id": f"r{row}", "text": "x", "error": None}) for row in range(3)]
    )
    with_lines.close()


@dataclass(frozen=True)
class Kind:
    """A kind of file: how to make a valid one, which file to mutate, how, and what to load ("" for its folder)."""

    make: Callable[[Path], None]
    file: str
    mutate: Callable[[bytes, random.Random], bytes]
    load: Callable[[Path], None]
    given: str = ""


_MODEL = ("config.json", "generation_config.json", "model.safetensors")
_JSON_TOKENIZER = _copy(GOLDENS / "tokenizers" / "llama3", "tokenizer.json", "tokenizer_config.json")
_ADAPTER = _copy(GOLDENS / "lora" / "llama_rslora", "adapter_config.json", "adapter_model.safetensors")
KINDS = {
    "yaml": Kind(_make_yaml, "predict.yaml", mutated_bytes, of_yaml, "predict.yaml"),
    "jsonl": Kind(_make_rows, "rows.jsonl", mutated_bytes, of_rows, "rows.jsonl"),
    "safetensors": Kind(
        _copy(GOLDENS / "llama2_mha", *_MODEL), "model.safetensors", mutated_header, of_checkpoint, "model.safetensors"
    ),
    "index": Kind(_make_index, "model.safetensors.index.json", mutated_json, of_model),
    "gguf": Kind(_make_gguf, "demo.gguf", mutated_bytes, of_gguf, "demo.gguf"),
    "ckpt": Kind(_make_ckpt, "model.ckpt", mutated_bytes, of_checkpoint, "model.ckpt"),
    "config.json": Kind(_copy(GOLDENS / "llama31", *_MODEL), "config.json", mutated_json, of_model),
    "generation_config.json": Kind(
        _copy(GOLDENS / "llama2_mha", *_MODEL), "generation_config.json", mutated_json, of_model
    ),
    "tokenizer.json": Kind(_JSON_TOKENIZER, "tokenizer.json", mutated_json, of_tokenizer),
    "tokenizer.model": Kind(
        _copy(DEMO, "tokenizer.model", "tokenizer_config.json"), "tokenizer.model", mutated_bytes, of_tokenizer
    ),
    "tokenizer_config.json": Kind(_JSON_TOKENIZER, "tokenizer_config.json", mutated_json, of_tokenizer),
    "template": Kind(_make_template, "chat_template.jinja", mutated_bytes, of_template, "chat_template.jinja"),
    "adapter": Kind(_ADAPTER, "adapter_config.json", mutated_json, of_adapter),
    "adapter weights": Kind(_ADAPTER, "adapter_model.safetensors", mutated_header, of_adapter),
    "sidecar": Kind(_make_save_file, "out.jsonl.job", mutated_json, of_save_file),
    "save file": Kind(_make_save_file, "out.jsonl", mutated_bytes, of_save_file),
}


class TooSlowError(Exception):
    """A case exceeded the time limit."""


def _too_slow(*_: object) -> None:
    raise TooSlowError


def run_case(kind: Kind, directory: Path, good: bytes, chance: random.Random, seconds: float) -> None:
    """Mutate the file and load it.

    Raises:
        Exception: any error that is not an `InferenceError`.
    """
    (directory / kind.file).write_bytes(kind.mutate(good, chance))
    load_case(kind, directory, seconds)


def load_case(kind: Kind, directory: Path, seconds: float) -> None:
    """Load a case's files unchanged; an `InferenceError` is accepted if its message is one line."""
    signal.signal(signal.SIGALRM, _too_slow)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with redirect_stderr(io.StringIO()):
            kind.load(directory / kind.given if kind.given else directory)
    except InferenceError as error:
        if "\n" in str(error) or len(str(error)) > 2000:
            raise AssertionError(f"not one short line: {str(error)[:200]!r}") from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def run_kind(
    name: str, numbers: range, seed: int, seconds: float, keep: Path | None = None, show: bool = False
) -> Iterator[tuple[int, str]]:
    """Return the faults of a kind: each case's number and one line."""
    kind = KINDS[name]
    with tempfile.TemporaryDirectory(prefix="fuzz.") as scratch:
        made = Path(scratch) / "good"
        made.mkdir()
        kind.make(made)
        good = {path: path.read_bytes() for path in made.rglob("*") if path.is_file()}
        for number in numbers:
            # The loader may have written to the files.
            for path, data in good.items():
                if path.name != kind.file and (not path.is_file() or path.stat().st_size != len(data)):
                    path.write_bytes(data)
            began = time.perf_counter()
            try:
                run_case(kind, made, good[made / kind.file], random.Random(f"{seed} {name} {number}"), seconds)
            except BaseException as error:  # any other error is a fault of the loader
                if isinstance(error, KeyboardInterrupt):
                    raise
                if show:
                    traceback.print_exc()
                took = time.perf_counter() - began
                yield number, f"{name} {number}: {type(error).__name__} after {took:.1f} s: {str(error)[:200]}"
            if keep:
                shutil.copytree(made, keep / f"{name} {number}", dirs_exist_ok=True)


def _child(name: str, numbers: range, arguments: argparse.Namespace, results: Any) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (arguments.memory << 20,) * 2)
    for found in run_kind(name, numbers, arguments.seed, arguments.seconds, arguments.keep, arguments.case is not None):
        results.send(found[1])
    results.send(None)


def in_child(name: str, numbers: range, arguments: argparse.Namespace) -> list[str]:
    """Run a kind's cases in a separate process and return the faults; a process that dies is also a fault."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_child, args=(name, numbers, arguments, sender))
    child.start()
    sender.close()
    faults: list[str] = []
    try:
        while (line := receiver.recv()) is not None:
            faults.append(line)
    except EOFError:
        child.join()
        faults.append(f"{name}: the process ended with {child.exitcode}")
    child.join()
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}; all by default")
    parser.add_argument("--count", type=int, default=200, help="cases of each kind (default 200)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="run this one alone, and show its traceback")
    parser.add_argument("--seconds", type=float, default=10.0, help="a case may take (default 10)")
    parser.add_argument("--memory", type=int, default=3000, help="MiB that a process may map (default 3000)")
    parser.add_argument("--keep", type=Path, help="keep each case's files in this directory")
    arguments = parser.parse_args()
    if strange := set(arguments.kinds) - set(KINDS):
        parser.error(f"no such kind: {', '.join(strange)}")
    numbers = range(arguments.count) if arguments.case is None else range(arguments.case, arguments.case + 1)
    faults = []
    for name in arguments.kinds or KINDS:
        began = time.perf_counter()
        found = in_child(name, numbers, arguments)
        print(f"{name}: {len(numbers)} cases, {len(found)} faults, {time.perf_counter() - began:.1f} s", flush=True)
        for line in found[:10]:
            print(f"  {line}", flush=True)
        faults += found
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
