"""The engine on a small model with latents and experts: a row's tokens are its own in any company."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
from toys import make_request

from inference.engine.engine import Engine
from inference.engine.request import Request
from inference.kernels.build import KernelBuildError, library_path
from inference.kernels.formats import Format
from inference.models.architecture.registry import model_config_from
from inference.models.runner import ModelRunner

try:
    library_path()
except KernelBuildError as error:
    pytest.skip(str(error), allow_module_level=True)

VOCABULARY = 61
SIZES = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "kv_lora_rank": 18,
    "q_lora_rank": 22,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "v_head_dim": 12,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 20,
    "n_shared_experts": 1,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
}
SETTINGS = (
    {"max_new_tokens": 12},
    {"max_new_tokens": 7, "do_sample": True, "temperature": 1.5, "seed": 7},
    {"max_new_tokens": 20},
)


def answers(model: ModelRunner, requests: list[Request], **limits: int) -> list[list[int]]:
    engine = Engine(model, prefix_cache=True, **limits)
    for request in requests:
        engine.add(request)
    for _ in engine.run():
        pass
    return [request.output_ids for request in requests]


def requests_of(prompts: list[list[int]]) -> list[Request]:
    return [make_request(prompt, str(i), **SETTINGS[i % 3]) for i, prompt in enumerate(prompts)]


@pytest.mark.parametrize("weight_format", [Format.BFLOAT16, Format.INT4])
def test_a_rows_tokens_do_not_depend_on_other_rows(graph_mode: None, weight_format: Format) -> None:
    """In chunks of seven tokens, with blocks that rows share, in a cache that is too small for all of them."""
    native = import_module("inference.kernels.native")
    sizes = {"num_blocks": 13, "block_size": 16, "kernels": native, "weight_format": weight_format, "seed": 5}
    model = ModelRunner(model_config_from(SIZES, "toy"), None, **sizes)
    random = np.random.default_rng(6)
    shared = random.integers(0, VOCABULARY, 20).tolist()
    prompts = [shared[: 4 * i] + random.integers(0, VOCABULARY, 1 + 9 * (i % 4)).tolist() for i in range(6)]
    alone = [answers(model, [request])[0] for request in requests_of(prompts)]
    together = answers(model, requests_of(prompts), max_sequences=4, max_batch_tokens=7)
    assert together == alone
    assert len({tuple(row) for row in alone}) == len(alone)
