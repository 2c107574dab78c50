"""Real weights answer as llama.cpp does: greedy ids and log probabilities on the same weights in float32.

scripts/real_models.sh fetches the models, and scripts/llama_cpp_goldens.py makes the goldens. A model that is not there
is skipped. Where llama.cpp's two best tokens are nearer than `NEAR_TIE` of a logit, either is right.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from inference.api.llm import LLM

GOLDENS = Path(__file__).parents[1] / "goldens" / "llama_cpp"
NEAR_TIE = 3e-3
# Of a log probability: float32 sums in another order, over 30 layers.
TOLERANCE = 2e-3


def models_folder() -> Path:
    """Where real_models.sh keeps what it fetched."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("REAL_MODELS") or Path(cache) / "mindspore-inference" / "models")


def answers(path: Path, prompts: list[dict[str, Any]]) -> list[Any]:
    """Our greedy answers with the weights in float32."""
    config = {"pretrained_model_dir": str(path), "engine": {"weight_dtype": "float32", "kv_cache_dtype": "float32"}}
    rows = [
        {"prompt": row["prompt_ids"], "custom_id": str(index), "max_new_tokens": len(row["ids"]), "logprobs": 10}
        for index, row in enumerate(prompts)
    ]
    with_ids = {answer.custom_id: answer for answer in LLM({**config, "predict_batch_size": len(rows)}).generate(rows)}
    return [with_ids[str(index)] for index in range(len(rows))]


def first_difference(ours: list[int], theirs: list[int]) -> int | None:
    return next((at for at, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)


# A model of 0.5B takes 2 GB and a minute: for who asks (`scripts/test.sh --real`).
LARGE = pytest.mark.skipif(not os.environ.get("REAL_MODELS_ALL"), reason="asked for with scripts/test.sh --real")


@pytest.mark.parametrize(
    "name", ["SmolLM2-135M-Instruct.Q4_1", pytest.param("Qwen2.5-Coder-0.5B-Instruct.Q4_K_M", marks=LARGE)]
)
def test_greedy_ids_are_those_of_llama_cpp(name: str) -> None:
    path, golden = models_folder() / f"{name}.gguf", GOLDENS / f"{name}.json"
    if not (path.is_file() and golden.is_file()):
        pytest.skip(f"{path.name} is not here: run scripts/real_models.sh")
    prompts = json.loads(golden.read_text(encoding="utf-8"))["prompts"]
    assert len(prompts) == 20
    near_ties = []
    for row, answer in zip(prompts, answers(path, prompts), strict=True):
        at = first_difference(list(answer.token_ids), row["ids"])
        if at is not None:
            assert row["leads"][at] < NEAR_TIE, (
                f"{row['prompt']}: token {at} differs, with a lead of {row['leads'][at]}"
            )
            near_ties.append(f"{row['prompt']} at token {at}")
        else:
            assert len(answer.token_ids) == len(row["ids"]), row["prompt"]
        found = dict(answer.logprobs[0].top)
        for token, logprob in row["first"].items():
            assert found[int(token)] == pytest.approx(logprob, abs=TOLERANCE), (row["prompt"], token)
    print("near ties:", near_ties or "none")
