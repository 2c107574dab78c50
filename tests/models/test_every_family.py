"""What holds for every family: weight formats and adapters; and that the documented table of families is true."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_lora import BLOCK_SIZE, BLOCKS, GOLDENS, TOLERANCE, random_adapter, runner_of, source_of

from inference.config import load_config
from inference.config.presets import list_presets
from inference.generation.build import runner_class
from inference.kernels.build import KernelBuildError, library_path
from inference.kernels.formats import Format, pack, unpack
from inference.kernels.weight import Weight
from inference.models.architecture.registry import ARCHITECTURES, resolve_architecture
from inference.models.compiled_network import CompiledNetwork
from inference.models.runner import ModelRunner
from inference.models.step import SequenceStep, StepBatch

try:
    library_path()
except KernelBuildError as error:
    pytest.skip(str(error), allow_module_level=True)

TABLE = Path(__file__).parents[2] / "docs" / "compatibility.md"
# A golden of each.
FAMILIES = (
    "baichuan2_13b", "chatglm3", "deepseek_v2", "deepseek_v3", "gemma2", "gemma3", "glm", "glm4", "glm4_moe", "gpt2",
    "internlm2", "llama31", "mistral_window", "mixtral", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe",
    "t5/t5_gated_untied", "telechat2", "gemma", "starcoder2", "ernie4_5", "seed_oss", "smollm3", "granite", "olmo2",
    "exaone4", "stablelm", "hunyuan", "ministral", "phi", "cohere", "cohere2", "granitemoe",
)  # fmt: skip
FORMATS = (Format.FLOAT16, Format.BFLOAT16, Format.INT8, Format.INT4)


def is_t5(base: str) -> bool:
    return base.startswith("t5/")


def prompt_of(base: str) -> list[int]:
    golden = np.load(GOLDENS / base / "golden.npz")
    return golden["source_2" if is_t5(base) else "prompt_4"].tolist()


def logits_of(runner: ModelRunner, base: str, adapters: tuple[int, ...] = (0,)) -> np.ndarray:
    """Logits [rows, n, V] of a prompt, or of the first tokens of an answer to it, with each of these adapters."""
    prompt = prompt_of(base)
    tables = [range(1 + 4 * row, 5 + 4 * row) for row in range(len(adapters))]
    steps = [SequenceStep(prompt, 0, table, adapter=a) for table, a in zip(tables, adapters, strict=True)]
    if is_t5(base):
        runner.encode(StepBatch.build(steps, BLOCK_SIZE))
        answer = [0, *np.load(GOLDENS / base / "golden.npz")["greedy_2"][:15].tolist()]
        steps = [
            SequenceStep(answer, 0, [50 + row], (table, len(prompt)), adapter=a)
            for row, (table, a) in enumerate(zip(tables, adapters, strict=True))
        ]
    logits = runner.step(StepBatch.build(steps, BLOCK_SIZE, all_logits=True)).logits
    return logits.reshape(len(adapters), -1, logits.shape[1])


def opened(base: str, weight_format: Format) -> tuple[ModelRunner, dict[str, Weight]]:
    """A native runner, and its weights, which are numpy arrays."""
    source, kept = source_of(base), {}
    kind: Any = runner_class(source.model)

    class Opened(kind):
        def build(self, parameters: dict[str, Weight]) -> CompiledNetwork:
            kept.update(parameters)
            return super().build(parameters)

    native = import_module("inference.kernels.native")
    sizes = {"num_blocks": BLOCKS, "block_size": BLOCK_SIZE}
    return Opened(source.model, source.pairs(), kernels=native, weight_format=weight_format, **sizes), kept


# Its weights are overwritten by each format in turn.
float32_of = lru_cache(maxsize=1)(lambda base: opened(base, Format.FLOAT32))


@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("base", FAMILIES)
def test_weights_of_every_format(base: str, weight_format: Format, graph_mode: None) -> None:
    """As the float32 kernels, which the goldens are for, answer with the same weights after their rounding.

    Weights of 16 bits to the last bit. Beside narrower ones activations are rounded to int8, too, which moves logits,
    by 0.017 at most, of a T5, whose scores are not scaled, by 0.06, and may send a token to another expert: half of the
    tokens count.
    """
    narrow, packed = opened(base, weight_format)
    exact, plain = float32_of(base)
    for name, shape in narrow.shard.parameter_shapes().items():
        if len(shape) > 1:
            # Nothing is written to what an expert has to spare of its last panel: that may be no number.
            with np.errstate(invalid="ignore"):
                values = unpack(packed[name].data, packed[name].format, *shape)
            plain[name].data[:] = pack(values, Format.FLOAT32)
    assert weight_format in {weight.format for weight in packed.values()}
    got, expected = logits_of(narrow, base), logits_of(exact, base)
    if not weight_format.quantized:
        assert np.array_equal(got, expected)
        return
    errors = np.sqrt(np.mean((got - expected) ** 2, axis=2)) / np.abs(expected).max()
    assert np.median(errors) < (0.1 if is_t5(base) else 0.03), f"{np.median(errors):.1e}"


@pytest.mark.parametrize("base", FAMILIES)
def test_an_adapter_by_the_row_and_merged(base: str, tmp_path: Path, graph_mode: None) -> None:
    """Of all linear layers: the same logits, and those of the golden for a row beside it without an adapter."""
    # A head that is divided by its length has no product of its own to add to.
    modules = "layers" if source_of(base).model.storage.normalized_head else ""
    adapters = {"a": str(random_adapter(tmp_path / "a", base, modules, rank=2, seed=1))}
    by_row, merged = (
        runner_of(source_of(base, adapters=adapters, engine=engine), "native", Format.FLOAT32)
        for engine in ({}, {"merge_adapter": "a"})
    )
    plain, got = logits_of(by_row, base, (0, 1))
    (expected,) = logits_of(merged, base)
    assert np.abs(got - expected).max() < TOLERANCE * np.abs(expected).max()
    golden = np.load(GOLDENS / base / "golden.npz")
    wanted = golden["logits_2"][:4] if is_t5(base) else golden["logits_4"]
    rows = plain[::4] if is_t5(base) else plain[golden["positions_4"]]
    assert np.abs(rows - wanted).max() < TOLERANCE * np.abs(wanted).max()
    assert np.abs(got - plain).max() > 0.02 * np.abs(plain).max()


# --- the table of families --------------------------------------------------------------------------------------------

# The families of goldens that no preset is of.
WITHOUT_PRESET = {"glm": "glm4"}
TICK = "✓"


def table() -> list[dict[str, str]]:
    """Rows of the documented table of families, by the names of its columns."""
    lines = TABLE.read_text(encoding="utf-8").partition("<!-- families -->")[2].partition("<!-- /families -->")[0]
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines.strip().splitlines())
    return [dict(zip(head, row, strict=True)) for row in rows]


def family_of(architecture: str) -> str:
    return ARCHITECTURES[resolve_architecture(architecture, "test")].name


def family_of_golden(base: str) -> str:
    values = json.loads((GOLDENS / base / "config.json").read_text())
    return family_of((values.get("architectures") or [values["model_type"]])[0])


@lru_cache
def families_of_presets() -> dict[str, set[str]]:
    """The families of the presets in each folder of configs/."""
    found: dict[str, set[str]] = {}
    for preset in list_presets():
        model = load_config(preset.path).model
        named = (
            model.arch.type or next(iter(model.model_config.architectures or []), None) or model.model_config.model_type
        )
        if preset.family not in ("base", "demo"):
            found.setdefault(preset.family, set()).add(family_of(named))
    return found


def families_of_row(row: dict[str, str]) -> set[str]:
    named = re.findall(r"`(\w+)`", row["Presets"])
    if row["Presets"].startswith("no preset"):
        return {family_of(architecture) for architecture in named}
    families = set().union(*(families_of_presets()[folder] for folder in named))
    return families | {family for family, like in WITHOUT_PRESET.items() if like in families}


def parametrised(test: Any) -> dict[str, list]:
    """The parameters that a test is run with, by their names."""
    marks = [mark for mark in test.pytestmark if mark.name == "parametrize"]
    return {mark.args[0]: list(mark.args[1]) for mark in marks}


@pytest.fixture(scope="module")
def covered() -> dict[str, set[str]]:
    """The families that are tested with what each column of the table is about."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1] / "parallel"))
        shared = import_module("test_shared_models")
    assert shared.answers and shared.test_greedy_tokens_are_those_of_transformers
    formats, lora = parametrised(test_weights_of_every_format), parametrised(test_an_adapter_by_the_row_and_merged)
    names = {
        "16 bit": formats["base"] if {Format.FLOAT16, Format.BFLOAT16} <= set(formats["weight_format"]) else [],
        "int8": formats["base"] if Format.INT8 in formats["weight_format"] else [],
        "int4": formats["base"] if Format.INT4 in formats["weight_format"] else [],
        "Parallel": [case.split(":")[0] for case in shared.TWO if case.endswith("native:float32")],
        "LoRA": lora["base"],
    }
    return {
        column: {family_of_golden(name) for name in found if not name.startswith("lora/")}
        for column, found in names.items()
    }


@pytest.mark.parametrize("column", ["16 bit", "int8", "int4", "Parallel", "LoRA"])
def test_each_check_mark_in_the_readme_has_a_test(column: str, covered: dict[str, set[str]]) -> None:
    """All of a row's families are tested where there is one, and none where there is not."""
    for row in table():
        families = families_of_row(row)
        if row[column] == TICK:
            assert families <= covered[column], f"nobody tests {families - covered[column]}"
        else:
            assert row[column] == "" and not families & covered[column], row


def test_the_readme_s_table_has_every_family_and_where_its_golden_is_from() -> None:
    rows = [families_of_row(row) for row in table()]
    assert set().union(*rows) == {family.name for family in ARCHITECTURES.values()}
    presets = [row["Presets"] for row in table() if not row["Presets"].startswith("no preset")]
    folders = [folder for listed in presets for folder in re.findall(r"`(\w+)`", listed)]
    assert sorted(folders) == sorted(families_of_presets())
    goldens = [str(path.parent.relative_to(GOLDENS)) for path in GOLDENS.rglob("config.json")]
    for row, families in zip(table(), rows, strict=True):
        own = [np.load(GOLDENS / base / "golden.npz") for base in goldens if family_of_golden(base) in families]
        sources = {str(golden["source"]) if "source" in golden else "transformers" for golden in own}
        assert set(re.findall(r"[\w.]+", row["Golden of"].replace("the reference", "reference_models.py"))) == sources
