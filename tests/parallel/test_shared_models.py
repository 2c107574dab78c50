"""Models that several ranks share, against the goldens and against one process: real processes, all kernels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ranks import in_processes, steps_of

from inference import kernels
from inference.checkpoint.open import open_checkpoint
from inference.kernels.build import KernelBuildError, library_path
from inference.kernels.formats import Format
from inference.models.architecture.config import ModelConfig
from inference.models.architecture.registry import model_config_from
from inference.models.architecture.t5_config import AnyConfig
from inference.models.runner import ModelRunner
from inference.models.weights import loading
from inference.models.weights.lora import Adapters

GOLDENS = Path(__file__).parents[1] / "goldens"
# Models, and adapters for some of them.
# One norm spans all heads of a token, which no rank has.
WHOLE = ("olmo2",)
NAMES = sorted({str(path.parent.relative_to(GOLDENS)) for path in GOLDENS.rglob("golden.npz")} - {*WHOLE})
QUANTIZED = ["llama31", "qwen3", "gemma2"]
TWO = [
    *[f"{name}:native:float32" for name in NAMES],
    *[f"{name}:native:{form}" for name in QUANTIZED for form in ("int8", "int4", "bfloat16")],
    "deepseek_v3:native:float16",
    "lora/deepseek_v3:native:bfloat16",
    "tcp",
    "gemma2:native:float32",
]
FOUR = [
    "llama2_gqa:native:float32",
    "llama2_mha:native:float32",
    "qwen2_tied:native:float32",
    "qwen3:native:float16",
    "gemma2:native:float32",
    "deepseek_v3:native:float32",
    "internlm2:native:float32",
    "gpt2:native:float32",
    "baichuan2_13b:native:float32",
    "lora/llama_rslora:native:float32",
]


@pytest.fixture(scope="module", params=[2, 4])
def answers(request: pytest.FixtureRequest) -> tuple[int, list[dict]]:
    try:
        library_path()
    except KernelBuildError as error:
        pytest.skip(str(error))
    cases = TWO if request.param == 2 else FOUR
    found = in_processes(request.param, cases)
    assert [answer["case"] for answer in found] == [case for case in cases if case != "tcp"]
    return request.param, found


def alone(case: str, steps: int) -> tuple[list[list[int]], np.ndarray]:
    """What one process says."""
    from shared_model import BLOCK, LORA, STEPS, adapters_of, base_of, greedy, prompts_of

    name, kind, form = case.split(":")
    chosen = kernels.choose(kind, device_target="CPU", mode=0, block_size=BLOCK, threads=1, say=print)
    config = read_config(name)
    pairs = loading.fit(open_checkpoint(base_of(name)), config, base_of(name))
    prompts = prompts_of(name)
    blocks = 1 + sum(-(-(len(prompt) + STEPS) // BLOCK) for prompt in prompts)
    sizes = {"num_blocks": blocks, "block_size": BLOCK, "kernels": chosen, "weight_format": Format(form)}
    runner = ModelRunner(config, pairs, **sizes, adapters=Adapters(None, adapters_of(name, config)))
    tokens, logits = greedy(runner, prompts, steps, adapter=int(name.startswith(LORA)))
    return tokens, np.array(logits)


def read_config(name: str) -> AnyConfig:
    from shared_model import base_of

    return model_config_from(json.loads((base_of(name) / "config.json").read_text()), name)


def assert_golden(answer: dict, steps: int) -> None:
    golden = np.load(GOLDENS / answer["case"].split(":")[0] / "golden.npz")
    for index, tokens in enumerate(answer["tokens"]):
        expected = golden[f"greedy_{index}"].tolist()
        assert len(tokens) == steps
        assert tokens[: len(expected)] == expected[:steps], (answer["case"], index)


def test_greedy_tokens_are_those_of_transformers(answers: tuple[int, list[dict]]) -> None:
    exact = [answer for answer in answers[1] if answer["case"].endswith("float32")]
    assert len(exact) >= 3
    for answer in exact:
        assert_golden(answer, steps_of("native", answers[0]))


def test_narrow_weights_give_what_one_process_gives(answers: tuple[int, list[dict]], graph_mode: None) -> None:
    narrow = [answer for answer in answers[1] if not answer["case"].endswith("float32")]
    assert narrow
    for answer in narrow:
        tokens, logits = alone(answer["case"], steps_of("native", answers[0]))
        assert answer["tokens"] == tokens, answer["case"]
        # Sums differ in their last bit, and so now and then a quantized input in its last place.
        tolerance = 1e-2 if ":int" in answer["case"] else 1e-4
        assert np.abs(np.array(answer["logits"]) - logits).max() < tolerance * np.abs(logits).max(), answer["case"]


def test_a_step_has_one_sum_per_sublayer_and_one_for_the_embedding(answers: tuple[int, list[dict]]) -> None:
    """The head has none: its results go to the leader as messages."""
    steps = steps_of("native", answers[0])
    for answer in answers[1]:
        name = answer["case"].split(":")[0]
        config = read_config(name)
        if isinstance(config, ModelConfig):
            assert answer["sums"] == 2 * config.num_layers + 1, name
        else:
            # A decoder's layer has a third half, and the sources have been encoded once.
            once = (2 * config.num_encoder_layers + 1) / steps
            assert answer["sums"] == 3 * config.num_layers + 1 + once, name


def test_ranks_on_one_host_add_in_shared_memory_and_others_through_connections(answers: tuple[int, list[dict]]) -> None:
    size, found = answers
    ways = [answer["transport"] for answer in found]
    assert set(ways[: len(ways) - 1]) == {"shared memory"}
    assert ways[-1] == ("TCP connections" if size == 2 else "shared memory")


@pytest.mark.slow
def test_stock_operators_add_through_mindspore() -> None:
    """As on Ascend, with mccl in the place of hccl."""
    cases = [f"{name}:stock:float32" for name in ("qwen2_tied", "gemma2", "lora/llama_rslora")]
    for answer in in_processes(2, cases):
        assert answer["transport"] == "MindSpore's collectives"
        assert_golden(answer, steps_of("stock", 2))
