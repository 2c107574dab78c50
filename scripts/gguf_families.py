"""Makes GGUF files of the golden models with llama.cpp's own converter, and compares llama.cpp's logits with ours.

Three steps, because each needs packages that the others do not:

    # torch, transformers, gguf; LLAMA_CPP is a checkout of llama.cpp
    python scripts/gguf_families.py convert --llama_cpp LLAMA_CPP --files OUT [FAMILY ...]
    # llama-cpp-python
    python scripts/gguf_families.py llama --files OUT
    # this project
    python scripts/gguf_families.py compare --files OUT

`convert` writes OUT/FAMILY.gguf for each golden of tests/goldens whose family the converter takes. The golden models
have no tokenizer, so each file gets a vocabulary of single characters. `llama` writes OUT/FAMILY.npz: logits of the
golden's prompts, with a float32 cache. `compare` prints a table: the largest difference of logits, as a share of the
largest logit, between this project and llama.cpp, and between this project and the golden.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
GOLDENS = ROOT / "tests" / "goldens"
PROMPTS = (3, 4, 6)


def families() -> list[str]:
    """Return the golden models' directories, those of T5 with their folder."""
    paths = (path.parent for pattern in ("*/golden.npz", "t5/*/golden.npz") for path in GOLDENS.glob(pattern))
    return sorted(path.relative_to(GOLDENS).as_posix() for path in paths)


def write_vocabulary(model: Any) -> None:
    """Write a vocabulary of single characters, of the model's size, instead of the converter's `set_vocab`."""
    size, writer = model.hparams.get("vocab_size") or model.hparams["padded_vocab_size"], model.gguf_writer
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    letters = [chr(0x100 + index) for index in range(size - 4)]
    # llama.cpp refuses a vocabulary without merges.
    writer.add_token_list(["<unk>", "<s>", "</s>", *letters, letters[0] + letters[1]])
    writer.add_token_types([2, 3, 3, *[1] * (size - 3)])
    writer.add_token_merges([f"{letters[0]} {letters[1]}"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def convert(name: str, llama_cpp: Path, target: Path, is_half: bool = False) -> None:
    """Run the converter on a golden, in this process; `is_half`: write float16.

    Raises:
        Exception: the converter does not take the model.
    """
    sys.path[:0] = [str(llama_cpp / "gguf-py"), str(llama_cpp)]
    import conversion
    import torch

    source = GOLDENS / name
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / target.stem
        copy.mkdir()
        for path in source.iterdir():
            if path.suffix in (".json", ".safetensors"):
                (copy / path.name).write_bytes(path.read_bytes())
        values = json.loads((source / "config.json").read_text()) | EXTRA.get(name, {})
        (copy / "config.json").write_text(json.dumps(values))
        hparams = conversion.ModelBase.load_hparams(copy, False)
        kind = conversion.get_model_architecture(hparams, conversion.ModelType.TEXT)
        found = conversion.get_model_class(kind)
        patched = type(found.__name__, (found,), {"set_vocab": write_vocabulary, "model_arch": found.model_arch})
        with torch.inference_mode():
            kinds = conversion.base.gguf.LlamaFileType
            patched(copy, kinds.MOSTLY_F16 if is_half else kinds.ALL_F32, target).write()


# Keys that the published models' configs have and transformers' classes do not write.
EXTRA: dict[str, dict[str, Any]] = {
    "cohere2": {"rotary_pct": 1.0},
    "deepseek_v3": {"scoring_func": "sigmoid"},
    "gpt2": {"n_ctx": 256},
    # The converter knows Hunyuan's scaling only with this context.
    "hunyuan": {"max_position_embeddings": 32768},
}


def llama_logits(path: Path, prompts: list[list[int]]) -> list[np.ndarray]:
    """Return llama.cpp's logits [L, V] of each prompt."""
    import llama_cpp

    model = llama_cpp.Llama(
        str(path), n_ctx=256, n_batch=256, n_threads=1, logits_all=True, type_k=0, type_v=0, verbose=False
    )
    found = []
    for prompt in prompts:
        model.reset()
        model.eval(prompt)
        found.append(np.array(model.scores[: len(prompt)]))
    return found


def our_logits(path: Path, prompts: list[list[int]]) -> list[np.ndarray]:
    """Return this project's logits [L, V] of each prompt."""
    from inference import kernels
    from inference.config import load_config
    from inference.kernels.formats import Format
    from inference.models.runner import ModelRunner
    from inference.models.source import resolve
    from inference.models.step import SequenceStep, StepBatch

    source = resolve(load_config({"pretrained_model_dir": str(path)}))
    chosen = kernels.choose("native", device_target="CPU", mode=0, block_size=16, threads=None, say=print)
    sizes = {"num_blocks": 16, "block_size": 16, "weight_format": Format.FLOAT32}
    runner = ModelRunner(source.model, source.pairs(), kernels=chosen, **sizes)
    return [
        runner.step(StepBatch.build([SequenceStep(prompt, 0, range(1, 15))], 16, True)).logits for prompt in prompts
    ]


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float((np.abs(ours - theirs).max(axis=1) / np.abs(theirs).max(axis=1)).max())


def prompts_of(name: str) -> list[list[int]]:
    golden = np.load(GOLDENS / name / "golden.npz")
    return [golden[f"prompt_{index}"].tolist() for index in PROMPTS]


def compare(name: str, files: Path) -> tuple[float, float]:
    """Return the differences from llama.cpp and from the golden."""
    ours, theirs = our_logits(files / f"{name}.gguf", prompts_of(name)), np.load(files / f"{name}.npz")
    golden = np.load(GOLDENS / name / "golden.npz")
    of_llama = max(difference(logits, theirs[f"logits_{i}"]) for i, logits in zip(PROMPTS, ours, strict=True))
    of_golden = max(
        difference(logits[golden[f"positions_{i}"]], golden[f"logits_{i}"])
        for i, logits in zip(PROMPTS, ours, strict=True)
    )
    return of_llama, of_golden


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("step", choices=("convert", "llama", "compare"))
    parser.add_argument("families", nargs="*", help="default: all")
    parser.add_argument("--files", type=Path, required=True)
    parser.add_argument("--llama_cpp", type=Path)
    parser.add_argument("--float16", action="store_true", help="convert to float16, as tests/goldens/gguf is")
    args = parser.parse_intermixed_args()
    args.files.mkdir(parents=True, exist_ok=True)
    failed = 0
    if args.step == "compare":
        print("| Family | llama.cpp | golden |\n|---|---|---|")
    for name in args.families or families():
        file = args.files / f"{Path(name).name}.gguf"
        # llama.cpp runs an encoder by other calls than these.
        if args.step != "convert" and (not file.exists() or name.startswith("t5/")):
            continue
        try:
            if args.step == "convert":
                convert(name, args.llama_cpp, file, args.float16)
            elif args.step == "llama":
                logits = llama_logits(file, prompts_of(name))
                np.savez(
                    file.with_suffix(".npz"), **{f"logits_{i}": rows for i, rows in zip(PROMPTS, logits, strict=True)}
                )
            else:
                print("| {} | {:.1e} | {:.1e} |".format(name, *compare(name, args.files)), flush=True)
        except Exception as error:
            failed += 1
            print(f"| {name} | {type(error).__name__}: {str(error)[:200]} | |", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
