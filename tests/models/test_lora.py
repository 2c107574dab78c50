"""LoRA adapters against transformers with PEFT's arithmetic in its weights (tests/goldens/lora)."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from inference import kernels
from inference.checkpoint.open import open_checkpoint
from inference.checkpoint.tensor import StoredTensor
from inference.config import load_config
from inference.errors import CheckpointError, ConfigError, InferenceError
from inference.generation.build import runner_class
from inference.jobs.identity import adapter_identity
from inference.kernels.build import KernelBuildError
from inference.kernels.formats import Format, to_bfloat16
from inference.models.runner import ModelRunner
from inference.models.source import ModelSource, resolve
from inference.models.step import SequenceStep, StepBatch
from inference.models.weights.lora import MergedTensor, PeftConfig, read_adapter
from inference.models.weights.parameters import DISTANCES, EMBEDDING, POSITIONS, SHARED
from inference.parallel.topology import WORLD_SIZE

GOLDENS = Path(__file__).parents[1] / "goldens"
LORA = GOLDENS / "lora"
CASES = sorted(path.name for path in LORA.iterdir() if path.name != "t5")
BLOCK_SIZE, BLOCKS = 16, 100
TOLERANCE = 1e-4
# Experts that a checkpoint stacks in one tensor have no matrix of their own to adapt.
STACKED = re.compile(r"block_sparse_moe\.(input|output)_linear$")
# Tables, of which rows are looked up.
NOT_ADAPTED = (EMBEDDING, POSITIONS, SHARED, DISTANCES)


def golden_of(case: str) -> Mapping[str, np.ndarray]:
    return np.load(LORA / case / "golden.npz")


def source_of(base: str, **keys: Any) -> ModelSource:
    return resolve(load_config({"load_checkpoint": str(GOLDENS / base), **keys}))


def adapters_of(*cases: str) -> dict[str, str]:
    return {case: str(LORA / case) for case in cases}


def runner_of(source: ModelSource, kind: str, weight_format: Format | None = None) -> ModelRunner:
    try:
        chosen = kernels.choose(kind, device_target="CPU", mode=0, block_size=BLOCK_SIZE, threads=None, say=print)
    except KernelBuildError as error:
        pytest.skip(str(error))
    sizes = {"num_blocks": BLOCKS, "block_size": BLOCK_SIZE}
    return runner_class(source.model)(
        source.model, source.pairs(), kernels=chosen, weight_format=weight_format, adapters=source.adapters, **sizes
    )


def check_against(case: str, logits_of: Callable[[list[int]], np.ndarray]) -> None:
    golden = golden_of(case)
    for i in range(len(golden["lengths"])):
        expected = golden[f"logits_{i}"]
        error = np.abs(logits_of(golden[f"prompt_{i}"].tolist()) - expected).max() / np.abs(expected).max()
        assert error < TOLERANCE, f"{case}, prompt {i}: {error:.1e}"


def all_logits(runner: ModelRunner, prompt: list[int]) -> np.ndarray:
    step = SequenceStep(prompt, 0, range(1, 9))
    return runner.step(StepBatch.build([step], BLOCK_SIZE, all_logits=True)).logits


@pytest.mark.parametrize("case", CASES)
def test_a_merged_adapter(case: str, graph_mode: None) -> None:
    base = str(golden_of(case)["base"])
    source = source_of(base, adapters=adapters_of(case), engine={"merge_adapter": case})
    runner = runner_of(source, "native", Format.FLOAT32)
    check_against(case, lambda prompt: all_logits(runner, prompt))


def test_parts_of_a_merged_tensor_equal_those_of_the_whole() -> None:
    """What chunks of a load and ranks read; the other tensors stay as they are."""
    pairs = source_of(
        "llama2_gqa", adapters=adapters_of("llama_rslora"), engine={"merge_adapter": "llama_rslora"}
    ).pairs()
    plain = source_of("llama2_gqa").pairs()
    assert pairs is not None and plain is not None
    merged = [tensor for tensor, _ in pairs if isinstance(tensor, MergedTensor)]
    assert len(merged) == 8
    for tensor in merged:
        part = values_of(tensor.rows(3, 7).columns(8, 16))
        assert np.allclose(part, values_of(tensor)[3:7, 8:16], rtol=0, atol=1e-6)
    changed = [not np.array_equal(values_of(a), values_of(b)) for (a, _), (b, _) in zip(pairs, plain, strict=True)]
    assert changed == [isinstance(tensor, MergedTensor) for tensor, _ in pairs]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bit_weights_are_rounded_once(dtype: str, tmp_path: Path) -> None:
    """The elements that memory of the same type takes are the float32 sum, rounded."""
    whole = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)
    bits = to_bfloat16(whole) if dtype == "bfloat16" else whole.astype(np.float16).view(np.uint16)
    header = {"w": {"dtype": {"float16": "F16", "bfloat16": "BF16"}[dtype], "shape": [5, 6], "data_offsets": [0, 60]}}
    text = json.dumps(header).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bits.tobytes())
    stored = open_checkpoint(path)["w"]
    up, down = np.full((5, 1), 0.5, np.float32), np.arange(6, dtype=np.float32)[None] / 7
    tensor = MergedTensor(
        name="w", dtype=dtype, shape=(5, 6), segments=stored.segments, whole=stored, left=up, right=down
    )
    elements = np.empty((5, 6), np.uint16)
    tensor.read_bytes_into(elements.view(np.uint8))
    expected = values_of(stored) + up @ down
    assert np.array_equal(
        elements, to_bfloat16(expected) if dtype == "bfloat16" else expected.astype(np.float16).view("u2")
    )


def values_of(tensor: StoredTensor) -> np.ndarray:
    out = np.empty(tensor.shape, np.float32)
    tensor.read_into(out)
    return out


def copied(case: str, to: Path, **changes: Any) -> Path:
    """An adapter's directory with other keys in its config; None takes a key out."""
    shutil.copytree(LORA / case, to)
    path = to / "adapter_config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return to


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"use_dora": True}, "use_dora is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is not supported"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights pissa_niter_16 changed the base"),
        ({"r": 0}, "r is 0; it must be a positive integer"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"r": 5}, "config.json says rank 5"),
        ({"rank_pattern": {"(": 3}}, "is not a regular expression"),
        ({"target_modules": ["q_proj", "v_proj"]}, "down_proj is stored and not named"),
        ({"target_modules": 3}, "target_modules is 3; it must be a list of texts"),
        ({"rank_pattern": {"q_proj": "8"}}, "rank_pattern of q_proj is '8'; it must be a positive integer"),
        ({"alpha_pattern": {"q_proj": float("inf")}}, "alpha_pattern of q_proj is inf; it must be a positive number"),
    ],
)
def test_unsupported_peft_features_are_rejected_by_name(changes: dict, expected: str, tmp_path: Path) -> None:
    path = copied("llama_patterns", tmp_path / "adapter", **changes)
    with pytest.raises(CheckpointError, match=expected):
        read_adapter("a", path, source_of("llama2_gqa").model)


def test_a_name_without_a_module_is_skipped(tmp_path: Path) -> None:
    """Lists of target modules are written for several families at once; PEFT takes what it finds."""
    named = ["q_proj", "v_proj", "down_proj", "o_proj", "query_key_value"]
    path = copied("llama_patterns", tmp_path / "adapter", target_modules=named)
    model = source_of("llama2_gqa").model
    assert read_adapter("a", path, model).parts.keys() == read_adapter("a", LORA / "llama_patterns", model).parts.keys()


def test_whole_matrices_and_tied_heads_are_rejected_by_name(tmp_path: Path) -> None:
    """What PEFT saves of a resized embedding or a trained head, and an adapter of a head that is the embedding."""
    path = copied("llama_patterns", tmp_path / "whole")
    tensors = load_file(path / "adapter_model.safetensors")
    head = {"base_model.model.lm_head.weight": np.ones((128, 32), np.float32)}
    save_file({**tensors, **head}, path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="lm_head.weight' is a whole matrix .*; .*merge it with PEFT"):
        read_adapter("a", path, source_of("llama2_gqa").model)
    path = copied("llama_rslora", tmp_path / "tied", target_modules=["lm_head"])
    halves = {"A": np.ones((3, 32), np.float32), "B": np.ones((128, 3), np.float32)}
    save_file(
        {f"base_model.model.lm_head.lora_{half}.weight": array for half, array in halves.items()},
        path / "adapter_model.safetensors",
    )
    for engine in ({}, {"merge_adapter": "a"}):
        with pytest.raises(CheckpointError, match="this model has no matrix lm_head of its own to adapt"):
            source_of("llama32_tied", adapters={"a": str(path)}, engine=engine).pairs()


def test_damaged_adapters_and_those_of_other_models(tmp_path: Path) -> None:
    model = source_of("llama2_gqa").model
    with pytest.raises(InferenceError, match=r"holds no adapter_config\.json"):
        read_adapter("a", tmp_path, model)
    path = copied("llama_patterns", tmp_path / "adapter")
    weights = path / "adapter_model.safetensors"
    tensors = load_file(weights)
    for name, array, expected in (
        ("base_model.model.lm_head.lora_embedding_A", np.ones((2, 2), np.float32), "no half of a low-rank matrix"),
        (
            "base_model.model.model.layers.0.self_attn.o_proj.lora_A.weight",
            np.ones((4, 32), np.float32),
            "lora_A alone",
        ),
    ):
        save_file({**tensors, name: array}, weights)
        with pytest.raises(CheckpointError, match=expected):
            read_adapter("a", path, model)
    weights.unlink()
    with pytest.raises(InferenceError, match="is not read"):
        read_adapter("a", path, model)
    (path / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not valid JSON"):
        read_adapter("a", path, model)
    with pytest.raises(CheckpointError, match="has no matrix transformer.h.0"):
        source_of("llama2_gqa", adapters=adapters_of("gpt2"), engine={"merge_adapter": "gpt2"}).pairs()
    with pytest.raises(CheckpointError, match="trained on another model"):
        source_of("qwen3", adapters=adapters_of("llama_patterns"), engine={"merge_adapter": "llama_patterns"}).pairs()


def test_unknown_adapters_are_rejected_before_weights_are_read() -> None:
    adapters = adapters_of("llama_patterns", "llama_rslora")
    merged = {"merge_adapter": "llama_rslora"}
    for keys, expected in (
        (
            {"adapter_id": ["llama_rslora", "x"]},
            "adapter_id 'x' is not an adapter of this run; there are llama_patterns",
        ),
        (
            {"engine": {"merge_adapter": "x"}},
            "engine.merge_adapter 'x' is not an adapter of this run; there are llama_pat",
        ),
        (
            {"generation_config": {"adapter_id": "x"}},
            "adapter_id 'x' is not an adapter of this run; there are llama_patterns",
        ),
        (
            {"adapter_id": "llama_patterns", "engine": merged},
            "'llama_patterns' is not an adapter of this run; there are llama_r",
        ),
        ({"engine": {**merged, "random_weights": True}}, "cannot be merged into weights that are packed or random"),
    ):
        with pytest.raises(ConfigError, match=expected):
            source_of("llama2_gqa", adapters=adapters, **keys)


def test_ranks_that_share_a_model_have_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORLD_SIZE, "2")
    keys = {"adapters": adapters_of("llama_rslora"), "parallel_config": {"model_parallel": 2}}
    source = source_of("llama2_gqa", use_parallel=True, **keys)
    assert source.ranks == 2 and source.adapters.numbers == {"llama_rslora": 1}


def test_mindformers_names_adapters_in_a_file(tmp_path: Path) -> None:
    """`pet_type: slora`, with a lora_adapter.json in `adapter_path`."""
    pet = {"pet_type": "slora", "adapter_path": str(tmp_path)}
    keys = {"model": {"model_config": {"pet_config": pet}}}
    with pytest.raises(ConfigError, match=r"lora_adapter\.json is not a mapping of adapter names"):
        source_of("llama2_gqa", **keys)
    (tmp_path / "lora_adapter.json").write_text(json.dumps({"one": str(LORA / "llama_rslora")}))
    source = source_of("llama2_gqa", **keys, adapters={"two": str(LORA / "llama_patterns")})
    assert source.adapters.numbers == {"one": 1, "two": 2}


def test_other_adapters_make_another_job(tmp_path: Path) -> None:
    """Scales count, and the bytes; where the files lie does not."""

    def identity(path: Path, **keys: Any) -> dict[str, Any]:
        source = source_of("llama2_gqa", adapters={"a": str(path)}, **keys)
        return adapter_identity(source)

    first = identity(LORA / "llama_patterns")
    assert identity(copied("llama_patterns", tmp_path / "same")) == first
    others = [
        identity(copied("llama_patterns", tmp_path / "alpha", lora_alpha=9)),
        identity(LORA / "llama_rslora"),
        identity(LORA / "llama_patterns", adapter_id="a"),
        identity(LORA / "llama_patterns", engine={"merge_adapter": "a"}),
    ]
    assert all(other != first for other in others) and adapter_identity(source_of("llama2_gqa")) == {}


def test_scales_and_ranks_follow_the_patterns() -> None:
    """As PEFT finds them: a pattern stands for the end of a module's name, the first one that fits counts."""
    config = PeftConfig(Path("x"), {"r": 8, "lora_alpha": 16, "rank_pattern": {"v_proj": 4, r"layers\.1\..*": 2}})
    assert [config.rank_of(f"model.layers.{i}.v_proj") for i in (0, 1)] == [4, 4]
    assert config.rank_of("model.layers.1.q_proj") == 2 and config.rank_of("model.layers.11.q_proj") == 8
    assert config.scale_of("model.layers.0.q_proj") == 2 and config.scale_of("model.layers.0.v_proj") == 4
    assert PeftConfig(Path("x"), {"r": 4, "lora_alpha": 16, "use_rslora": True}).scale_of("q_proj") == 8


@pytest.fixture(scope="module", params=["native", "stock"])
def mixing(request: pytest.FixtureRequest, graph_mode: None) -> ModelRunner:
    """Llama with both of its adapters."""
    return runner_of(source_of("llama2_gqa", adapters=adapters_of("llama_patterns", "llama_rslora")), request.param)


@dataclass
class Row:
    """A prompt, its adapter, what transformers says of it, and blocks of cache."""

    case: str
    adapter: int
    prompt: list[int]
    logits: np.ndarray
    greedy: list[int]
    blocks: range


def mixed_rows() -> list[Row]:
    """Prompts of two adapters and of the plain model, one after the other."""
    rows = []
    for i in range(3):
        for adapter, case in ((1, "lora/llama_patterns"), (0, "llama2_gqa"), (2, "lora/llama_rslora")):
            golden = np.load(GOLDENS / case / "golden.npz")
            # Of the plain model's prompts those whose logits are stored at every position.
            greedy = golden[f"greedy_{i}"].tolist()[:24]
            first = 1 + 6 * len(rows)
            rows.append(
                Row(
                    case,
                    adapter,
                    golden[f"prompt_{i}"].tolist(),
                    golden[f"logits_{i}"],
                    greedy,
                    range(first, first + 6),
                )
            )
    return rows


def test_every_row_of_a_batch_has_its_own_adapter(mixing: ModelRunner) -> None:
    """Logits of whole prompts, and greedy tokens, of nine rows that run together."""
    rows = mixed_rows()
    steps = [SequenceStep(row.prompt, 0, row.blocks, adapter=row.adapter) for row in rows]
    logits = mixing.step(StepBatch.build(steps, BLOCK_SIZE, all_logits=True)).logits
    texts = [list(row.prompt) for row in rows]
    for row, text, own in zip(
        rows, texts, np.split(logits, np.cumsum([len(row.prompt) for row in rows])[:-1]), strict=True
    ):
        error = np.abs(own - row.logits).max() / np.abs(row.logits).max()
        assert error < TOLERANCE, f"{row.case}, prompt of {len(row.prompt)}: {error:.1e}"
        text.append(int(own[-1].argmax()))
    count = 24 if mixing.kernels.NARROW else 8
    for _ in range(count - 1):
        steps = [
            SequenceStep(text[-1:], len(text) - 1, row.blocks, adapter=row.adapter)
            for row, text in zip(rows, texts, strict=True)
        ]
        for text, best in zip(texts, mixing.step(StepBatch.build(steps, BLOCK_SIZE)).best, strict=True):
            text.append(int(best))
    assert [text[len(row.prompt) :] for row, text in zip(rows, texts, strict=True)] == [
        row.greedy[:count] for row in rows
    ]


@pytest.mark.parametrize(
    ("case", "kind"),
    [(case, "native") for case in ("gpt2", "phi3", "deepseek_v2_lite", "deepseek_v3", "mixtral")]
    + [("deepseek_v3", "stock")],
)
def test_adapters_of_other_parts_by_the_row(case: str, kind: str, graph_mode: None) -> None:
    """No gate and matrices the other way round; fused matrices; latents; experts, their router and the output head.

    Beside rows without an adapter, whose answers are those of the base's golden.
    """
    base = str(golden_of(case)["base"])
    runner = runner_of(source_of(base, adapters=adapters_of(case)), kind)
    plain = np.load(GOLDENS / base / "golden.npz")
    beside = plain["prompt_2"].tolist()

    def logits_of(prompt: list[int]) -> np.ndarray:
        steps = [SequenceStep(beside, 0, [9]), SequenceStep(prompt, 0, range(1, 9), adapter=1)]
        logits = runner.step(StepBatch.build(steps, BLOCK_SIZE, all_logits=True)).logits
        error = np.abs(logits[: len(beside)] - plain["logits_2"]).max() / np.abs(plain["logits_2"]).max()
        assert error < TOLERANCE, f"{base} beside it: {error:.1e}"
        return logits[len(beside) :]

    check_against(case, logits_of)


@pytest.mark.parametrize(
    ("case", "weight_format"),
    [
        ("llama_patterns", Format.FLOAT32),
        ("llama_rslora", Format.INT4),
        ("deepseek_v3", Format.FLOAT32),
        ("mixtral", Format.INT8),
    ],
)
def test_a_row_does_not_depend_on_its_neighbors_adapters(
    case: str, weight_format: Format, tmp_path: Path, graph_mode: None
) -> None:
    """To the last bit: alone, beside others, token by token; and without an adapter as if there were none."""
    base = str(golden_of(case)["base"])
    adapters = {"one": str(LORA / case), "other": str(copied(case, tmp_path / "other", lora_alpha=1))}
    adapted = runner_of(source_of(base, adapters=adapters), "native", weight_format)
    plain = runner_of(source_of(base), "native", weight_format)
    prompts = [np.random.default_rng(row).integers(3, 128, 20).tolist() for row in range(3)]

    def last(runner: ModelRunner, rows: Sequence[int], numbers: Sequence[int]) -> np.ndarray:
        steps = [SequenceStep(prompts[row], 0, range(1 + 2 * row, 3 + 2 * row), adapter=numbers[row]) for row in rows]
        return runner.step(StepBatch.build(steps, BLOCK_SIZE)).logits

    together = last(adapted, (0, 1, 2), (2, 0, 1))
    for row in range(3):
        assert np.array_equal(last(adapted, [row], (2, 0, 1))[0], together[row])
    assert np.array_equal(last(plain, [1], (0, 0, 0))[0], together[1])
    assert not np.array_equal(last(adapted, [0], (1, 1, 1))[0], together[0])
    for at, token in enumerate(prompts[0]):
        steps = [SequenceStep(prompts[2][at:], at, [7, 8], adapter=1), SequenceStep([token], at, [1, 2], adapter=2)]
        got = adapted.step(StepBatch.build(steps, BLOCK_SIZE)).logits[1]
    assert np.array_equal(got, together[0])


def test_adapters_of_different_matrices(tmp_path: Path, graph_mode: None) -> None:
    """One has only values, the other only an output projection: neither finds the other's, nor what is beyond it."""
    adapters = {
        name: str(random_adapter(tmp_path / name, "llama2_gqa", rf"\.{name}_proj$", rank, seed=rank))
        for name, rank in (("v", 5), ("o", 2))
    }
    together = runner_of(source_of("llama2_gqa", adapters=adapters), "native")
    prompt = list(range(3, 20))
    for number, (name, path) in enumerate(adapters.items(), 1):
        alone = runner_of(source_of("llama2_gqa", adapters={name: path}), "native")
        steps = [StepBatch.build([SequenceStep(prompt, 0, [1, 2], adapter=a)], BLOCK_SIZE) for a in (number, 1)]
        assert np.array_equal(together.step(steps[0]).logits, alone.step(steps[1]).logits)


def random_adapter(directory: Path, base: str, modules: str, rank: int, seed: int) -> Path:
    """An adapter of those matrices of a golden model whose names have a match, under the names of its checkpoint."""
    pairs = source_of(base).pairs()
    assert pairs is not None
    directory.mkdir()
    rng, tensors = np.random.default_rng(seed), {}
    for tensor, place in pairs:
        module = tensor.name.removesuffix(".weight")
        if len(tensor.shape) != 2 or not re.search(modules, module) or place.parameter.endswith(NOT_ADAPTED):
            continue
        if STACKED.search(module):
            continue
        rows, columns = place.taken_from or place.shape
        for half, shape in {"A": (rank, columns), "B": (rows, rank)}.items():
            values = 0.3 * rng.standard_normal(shape, np.float32)
            tensors[f"base_model.model.{module}.lora_{half}.weight"] = values
    assert tensors
    save_file(tensors, directory / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 1, "target_modules": "all-linear"}
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    return directory


@pytest.mark.parametrize("kind", ["native", "stock"])
def test_an_encoder_and_its_decoder_are_adapted(kind: str, graph_mode: None) -> None:
    """T5: every projection of self- and cross-attention and of the feed-forward, and the head, beside a plain row."""
    golden = golden_of("t5")
    base = str(golden["base"])
    runner, plain = runner_of(source_of(base, adapters=adapters_of("t5")), kind), np.load(GOLDENS / base / "golden.npz")
    rows = [(plain, 2, 0), *((golden, i, 1) for i in range(len(golden["lengths"])))]
    sources, steps = [], []
    for row, (of, i, number) in enumerate(rows):
        source, answer = of[f"source_{i}"].tolist(), of[f"greedy_{i}"].tolist()
        table = range(1 + 8 * row, 5 + 8 * row)
        sources.append(SequenceStep(source, 0, table, adapter=number))
        steps.append(
            SequenceStep([0, *answer[:-1]], 0, range(5 + 8 * row, 9 + 8 * row), (table, len(source)), adapter=number)
        )
    runner.encode(StepBatch.build(sources, BLOCK_SIZE))
    logits = runner.step(StepBatch.build(steps, BLOCK_SIZE, all_logits=True)).logits
    for (of, i, _), own in zip(rows, logits.reshape(len(rows), -1, logits.shape[1]), strict=True):
        assert own.argmax(axis=1).tolist() == of[f"greedy_{i}"].tolist()
        expected = of[f"logits_{i}"]
        assert np.abs(own[::4] - expected).max() < TOLERANCE * np.abs(expected).max()


def test_adapters_that_only_all_rows_can_use_are_merged(tmp_path: Path) -> None:
    """A head whose rows are divided by their length; and a table is not for adapting at all."""
    path = random_adapter(tmp_path / "head", "baichuan2_7b", "lm_head", rank=1, seed=0)
    with pytest.raises(CheckpointError, match="lm_head cannot be adapted for some rows .* --merge_adapter a"):
        source_of("baichuan2_7b", adapters={"a": str(path)})
    assert source_of("baichuan2_7b", adapters={"a": str(path)}, engine={"merge_adapter": "a"}).pairs()
    tensors = {
        f"base_model.model.model.embed_tokens.lora_{half}.weight": np.ones(shape, np.float32)
        for half, shape in {"A": (1, 32), "B": (128, 1)}.items()
    }
    save_file(tensors, path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="embed_tokens cannot be adapted for some rows"):
        source_of("llama2_gqa", adapters={"a": str(path)})
    with pytest.raises(CheckpointError, match="this model has no matrix lm_head of its own"):
        save_file(
            {name.replace("model.embed_tokens", "lm_head"): values for name, values in tensors.items()},
            path / "adapter_model.safetensors",
        )
        source_of("llama32_tied", adapters={"a": str(path)})
