"""The demo model, by meaning: right answers to questions that it never saw, whatever way they are run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from inference.config import Override, load_config
from inference.engine.engine import Engine
from inference.engine.metrics import RunMetrics
from inference.engine.request import Request
from inference.generation.model import GenerativeModel
from inference.inputs.prompts import Prompt
from inference.models.block_pool import BlockPool
from inference.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "demo" / "predict_demo.yaml"
ROWS = [json.loads(line) for line in (ROOT / "tests/demo/heldout.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module", params=["auto", "stock"])
def model(request: pytest.FixtureRequest, graph_mode: None) -> GenerativeModel:
    return GenerativeModel.from_config(
        load_config(CONFIG, overrides=[Override("engine.kernels", request.param, "the test")]), say=print
    )


@pytest.fixture(scope="module")
def tokenizer(model: GenerativeModel) -> Tokenizer:
    return model.source.tokenizer()


def answers(model: GenerativeModel, tokenizer: Tokenizer, texts: list[str], **settings) -> list[str]:
    encoder = model.encoder(tokenizer, **settings)
    prompts = encoder.encode_all(Prompt(str(i), f"row {i}", text) for i, text in enumerate(texts))
    return [text for (text,) in model.answer(prompts, tokenizer)]


def test_the_questions_are_of_both_kinds() -> None:
    kinds = [row["kind"] for row in ROWS]
    assert kinds.count("sum") >= 50 and kinds.count("translation") >= 50


@pytest.mark.parametrize("kind", ["sum", "translation"])
def test_right_answers(model: GenerativeModel, tokenizer: Tokenizer, kind: str) -> None:
    """At least 95 % of questions whose combinations training held back, answered in one batch."""
    rows = [row for row in ROWS if row["kind"] == kind]
    found = answers(model, tokenizer, [row["prompt"] for row in rows])
    wrong = [
        f"{row['prompt']}{answer}, expected{row['answer']}"
        for row, answer in zip(rows, found, strict=True)
        if answer.strip() != row["answer"].strip()
    ]
    assert len(wrong) <= 0.05 * len(rows), "; ".join(wrong)


def test_results_checked_by_hand(model: GenerativeModel, tokenizer: Tokenizer) -> None:
    sums = [(row["prompt"], re.findall(r"\d+", row["prompt"])) for row in ROWS if "+" in row["prompt"]][:20]
    assert len(sums) == 20
    found = answers(model, tokenizer, [prompt for prompt, _ in sums])
    right = [int(answer) == int(a) + int(b) for answer, (_, (a, b)) in zip(found, sums, strict=True)]
    assert sum(right) >= 19


def test_one_by_one_and_together(model: GenerativeModel, tokenizer: Tokenizer) -> None:
    texts = [row["prompt"] for row in ROWS[::20]] + ["Once upon a time"]
    together = answers(model, tokenizer, texts, max_new_tokens=60)
    assert together == [answers(model, tokenizer, [text], max_new_tokens=60)[0] for text in texts]
    assert together[::-1] == answers(model, tokenizer, texts[::-1], max_new_tokens=60)


def test_with_and_without_the_past(model: GenerativeModel, tokenizer: Tokenizer) -> None:
    texts = [row["prompt"] for row in ROWS[::25]] + ["Once upon a time"]
    found = [answers(model, tokenizer, texts, max_new_tokens=40, use_past=use_past) for use_past in (True, False)]
    assert found[0] == found[1]


def requests_of(model: GenerativeModel, tokenizer: Tokenizer) -> list[Request]:
    """Rows that begin alike, one prompt twice whose blocks are all full, greedy and sampled."""
    story = tokenizer.encode("Once upon a time, there was a little girl named Ruby. She lived near the beach. She")
    rows: list[tuple[list[int], dict]] = [(tokenizer.encode(row["prompt"]), {}) for row in ROWS[::40]]
    rows += [(story[:16], {}), (story[:16], {}), (story, {}), (story, {"do_sample": True, "seed": 3}), (story[:18], {})]
    requests = []
    for index, (ids, settings) in enumerate(rows):
        generation = model.generation_config.updated(logprobs=1, ignore_eos=True, **settings)
        requests.append(Request(str(index), ids, generation, 48))
    return requests


# One size is enough for the slow kernels.
@pytest.mark.parametrize(
    ("model", "blocks"), [("auto", 7), ("auto", 15), ("auto", 200), ("stock", 15)], indirect=["model"]
)
def test_in_any_batch_with_and_without_shared_blocks(
    model: GenerativeModel, tokenizer: Tokenizer, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone and without sharing, then together in any order, in caches down to one for hardly a row. With the native
    kernels every log probability is the same to the last bit, so every key and value is."""
    alone = requests_of(model, tokenizer)
    model.runner.blocks.forget()
    for request in alone:
        run(Engine(model.runner, prefix_cache=False), [request])
    copies, copy = [], model.runner.copy_blocks
    monkeypatch.setattr(model.runner, "copy_blocks", lambda pairs: (copies.extend(pairs), copy(pairs)))
    monkeypatch.setattr(model.runner, "blocks", BlockPool(blocks, model.runner.block_size))
    metrics = RunMetrics()
    for order in (1, -1, 1) if model.runner.kernels.NARROW else (-1, 1):
        together = requests_of(model, tokenizer)
        run(Engine(model.runner, max_batch_tokens=40, metrics=metrics), together[::order])
        assert [r.output_ids for r in together] == [r.output_ids for r in alone]
        if model.runner.kernels.NARROW:
            assert [r.logprobs for r in together] == [r.logprobs for r in alone]
    assert metrics.reused_tokens > 0
    assert (metrics.preemptions > 0) == (blocks != 200)
    assert copies or blocks == 7


def run(engine: Engine, requests: list[Request]) -> None:
    for request in requests:
        engine.add(request)
    for _ in engine.run():
        pass


def test_samples_depend_on_their_seeds_and_rows_alone(model: GenerativeModel, tokenizer: Tokenizer) -> None:
    text, settings = "Once upon a time", {"do_sample": True, "temperature": 1.2, "max_new_tokens": 30}
    alone = {seed: answers(model, tokenizer, [text], seed=seed, **settings)[0] for seed in (0, 1)}
    assert alone[0] != alone[1]
    among = answers(model, tokenizer, [text, "2 + 2 =", text, "3 + 3 ="], seed=0, **settings)
    assert among[0] == alone[0] != among[2]
    assert among[2] == answers(model, tokenizer, ["3 + 3 =", "2 + 2 =", text], seed=0, **settings)[2]


def test_a_rows_seed_does_not_depend_on_its_position(model: GenerativeModel, tokenizer: Tokenizer) -> None:
    text, settings = "Once upon a time", {"do_sample": True, "temperature": 1.2, "max_new_tokens": 30}
    alone = answers(model, tokenizer, [text], seed=5, **settings)
    encoder = model.encoder(tokenizer, **settings)
    rows = [Prompt(str(i), f"row {i}", text, settings={"seed": seed}) for i, seed in enumerate((0, 5, 5))]
    found = [text for (text,) in model.answer(encoder.encode_all(rows), tokenizer)]
    assert found[1:] == alone * 2 and found[0] != found[1]


def test_a_story_is_good_english(model: GenerativeModel, tokenizer: Tokenizer) -> None:
    (story,) = answers(model, tokenizer, ["Once upon a time"])
    assert len(story.split()) > 20
    assert re.fullmatch(r"[A-Za-z ,.!?'\"\n:;-]+", story), story
    assert story.rstrip()[-1] in '.!?"'


def test_a_stop_string_ends_the_story(model: GenerativeModel, tokenizer: Tokenizer) -> None:
    (story,) = answers(model, tokenizer, ["Once upon a time"])
    first = story.split(".")[0]
    assert answers(model, tokenizer, ["Once upon a time"], stop=["."]) == [first]
