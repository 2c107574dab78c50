"""Rows that ask for adapters by name, through encoder, engine and prefix cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inference.config import load_config
from inference.errors import InputError
from inference.generation.model import GenerativeModel, make_encoder
from inference.generation.perplexity import Continuation, score_continuations
from inference.generation.replica_messages import row_fields, row_of
from inference.inputs.prompts import Prompt
from inference.models.source import resolve
from inference.modes.convert import convert

GOLDENS = Path(__file__).parents[1] / "goldens"
NAMES = ("llama_patterns", "llama_rslora")
ADAPTERS = {name: str(GOLDENS / "lora" / name) for name in NAMES}
LENGTH = 24


def config_of(**keys: Any) -> Any:
    return load_config({"load_checkpoint": str(GOLDENS / "llama2_gqa"), "adapters": ADAPTERS, **keys})


def greedy(case: str, i: int) -> tuple[list[int], list[int]]:
    golden = np.load(GOLDENS / case / "golden.npz")
    return golden[f"prompt_{i}"].tolist(), golden[f"greedy_{i}"].tolist()[:LENGTH]


@pytest.fixture(scope="module")
def model(graph_mode: None) -> GenerativeModel:
    return GenerativeModel.from_config(config_of(), say=print)


def test_generate_takes_an_adapter(model: GenerativeModel) -> None:
    """One after the other, so that each finds the cache that the others have left."""
    for case, settings in (
        ("lora/llama_rslora", {"adapter_id": "llama_rslora"}),
        ("llama2_gqa", {}),
        ("lora/llama_patterns", {"adapter_id": "llama_patterns"}),
        ("llama2_gqa", {"adapter_id": ""}),
    ):
        prompt, expected = greedy(case, 2)
        for _ in range(2):
            (row,) = model.generate([prompt], max_new_tokens=LENGTH, ignore_eos=True, **settings)
            assert row[len(prompt) :] == expected


def test_rows_of_one_prompt_share_cache_with_their_adapters_alone(model: GenerativeModel) -> None:
    prompt = list(range(3, 53))
    encoder = make_encoder(model.source, None, model.generation_config.updated(max_new_tokens=8, ignore_eos=True))

    def run(names: list[str]) -> list[tuple[list[int], int]]:
        prompts = [
            Prompt(str(i), "x", token_ids=tuple(prompt), settings={"adapter_id": n}) for i, n in enumerate(names)
        ]
        requests = [encoded.request(model.config.context_length) for encoded in encoder.encode_all(prompts)]
        with model.engine() as engine:
            for request in requests:
                engine.add(request)
            list(engine.run())
        return [(request.output_ids, request.num_reused) for request in requests]

    names = ["", *NAMES]
    together = run(names)
    assert [reused for _, reused in together] == [0, 0, 0]
    again = [run([name])[0] for name in names]
    assert [reused for _, reused in again] == [48, 48, 48]
    assert [ids for ids, _ in again] == [ids for ids, _ in together]
    assert len({tuple(ids) for ids, _ in together}) == 3


def test_a_merged_adapter_keeps_its_name(graph_mode: None) -> None:
    merged = GenerativeModel.from_config(config_of(engine={"merge_adapter": "llama_rslora"}), say=print)
    prompt, expected = greedy("lora/llama_rslora", 1)
    for settings in ({}, {"adapter_id": "llama_rslora"}):
        (row,) = merged.generate([prompt], max_new_tokens=LENGTH, ignore_eos=True, **settings)
        assert row[len(prompt) :] == expected
    with pytest.raises(InputError, match="'llama_patterns' is not an adapter of this model; there are llama_rslora"):
        merged.generate([prompt], adapter_id="llama_patterns")


def test_an_adapter_is_found_by_row_by_config_and_by_place() -> None:
    def numbers(rows: int = 2, **keys: Any) -> list[int]:
        source = resolve(config_of(**keys))
        encoder = make_encoder(source, None, source.generation)
        own = Prompt("own", "x", token_ids=(5,), settings={"adapter_id": "llama_patterns"})
        prompts = [*(Prompt(str(row), f"x:{row}", token_ids=(5,)) for row in range(rows)), own]
        return [encoded.adapter for encoded in encoder.encode_all(prompts)]

    assert numbers() == [0, 0, 1]
    assert numbers(adapter_id="llama_rslora") == [2, 2, 1]
    assert numbers(adapter_id=["llama_patterns", "llama_rslora"]) == [1, 2, 1]
    with pytest.raises(InputError, match="x:2: adapter_id names 2 adapters, this is prompt 3"):
        numbers(rows=3, adapter_id=["llama_patterns", "llama_rslora"])


def test_another_replica_gets_the_adapter_too() -> None:
    source = resolve(config_of())
    encoder = make_encoder(source, None, source.generation)
    prompt = Prompt("0", "x", token_ids=(5, 6), settings={"adapter_id": "llama_rslora"})
    sent = json.loads(json.dumps(row_fields(encoder.encode(0, prompt))))
    request = row_of(sent, encoder.generation).request(100)
    assert request.adapter == 2 and request.cache_key


def test_texts_are_scored_with_an_adapter(model: GenerativeModel) -> None:
    """As transformers' logits say."""
    golden = np.load(GOLDENS / "lora" / "llama_patterns" / "golden.npz")
    prompt, logits = golden["prompt_2"].tolist(), golden["logits_2"].astype(np.float64)
    expected = sum(np.log(np.exp(row).sum()) - row[token] for row, token in zip(logits, prompt[1:], strict=False))
    with model.engine():
        own, other = score_continuations(model.runner, [Continuation(prompt, 1, 1), Continuation(prompt, 1)])
    assert own.nats == pytest.approx(expected, rel=1e-4) and abs(other.nats - expected) > 1


def test_convert_packs_the_merged_model(tmp_path: Path, graph_mode: None) -> None:
    engine = {"merge_adapter": "llama_rslora", "weight_dtype": "float32"}
    made = convert(config_of(engine=engine, output_dir=str(tmp_path)))
    packed = GenerativeModel.from_config(load_config({"load_checkpoint": str(made)}), say=print)
    prompt, expected = greedy("lora/llama_rslora", 2)
    (row,) = packed.generate([prompt], max_new_tokens=LENGTH, ignore_eos=True)
    assert row[len(prompt) :] == expected
