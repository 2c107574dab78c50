"""What the demo T5 is trained and tested on, and the files that came of it."""

from __future__ import annotations

import json
import random
import re
import struct
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from demo_training import instructions, news, phrases

HERE = Path(__file__).parent
DEMO = HERE.parents[1] / "inference" / "demo_t5"


@given(st.integers())
def test_a_report_is_good_english_and_contains_its_headline(seed: int) -> None:
    report = news.draw_report(random.Random(seed))
    assert not re.search(r"[\[\]{}|]|  |\b[Aa] [aeio]|\?", report.text), report.text
    assert report.text[-1] in '.!"' and report.text[0].isupper() and report.text.count('"') % 2 == 0
    assert 1 <= len(re.findall(r'[.!]"? (?=[A-Z"])', report.text)) <= 3
    assert report.headline[0].isupper() and report.headline[-1].isalpha()
    # Towns and names are the report's own.
    names = {*news.TOWNS, *news.WOMEN, *news.MEN} & set(report.headline.split())
    assert names and all(name in report.text for name in names)


@pytest.mark.parametrize(
    ("kind", "headline"),
    [
        ("find", "Baker from Redhill finds golden ring"),
        ("match", "Redhill beats Ashford"),
        ("weather", "Storm closes museum in Redhill"),
    ],
)
def test_headlines(kind: str, headline: str) -> None:
    template = news.NEWS[kind].strip().split("\n=> ")[1]
    slots = {"Job": "Baker", "town": "Redhill", "adjective": "golden", "item": "ring", "winner": "Redhill"}
    slots |= {"loser": "Ashford", "Weather_bare": "Storm", "building": "museum"}
    assert template.format(**slots) == headline


def test_training_draws_nothing_that_is_held_out() -> None:
    rng = random.Random(5)
    assert not any(news.draw_report(rng).is_held_out for _ in range(2000))
    assert all(news.draw_report(rng, held_out=True).is_held_out for _ in range(100))
    held_out = {document.prompt for document in instructions.held_out("translation", 300, seed=3)}
    assert not held_out & {instructions.draw_document(rng).prompt for _ in range(20000)}


def test_held_out_rows_are_held_out_and_right() -> None:
    rows = [json.loads(line) for line in (HERE / "heldout_t5.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == len({row["prompt"] for row in rows}) == 200
    for kind in ("translation", "summary"):
        ours = [row for row in rows if row["kind"] == kind]
        made = instructions.held_out(kind, 100, seed=21)
        assert [(row["prompt"], row["answer"]) for row in ours] == [(doc.prompt, doc.answer) for doc in made]


def test_both_ways_of_a_translation() -> None:
    phrase = phrases.Phrase("the big house", "das große Haus")
    there, back = (instructions.translation(phrase, way) for way in (instructions.TO_GERMAN, instructions.TO_ENGLISH))
    assert (there.prompt, there.answer) == ("translate English to German: the big house", "das große Haus")
    assert (back.prompt, back.answer) == ("translate German to English: das große Haus", "the big house")


def test_files_are_small_float16_and_fit_the_config() -> None:
    assert sum(path.stat().st_size for path in DEMO.iterdir()) <= 4_000_000
    config = json.loads((DEMO / "config.json").read_text(encoding="utf-8"))
    content = (DEMO / "model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    assert header.pop("__metadata__") == {"format": "pt"}
    assert {entry["dtype"] for entry in header.values()} == {"F16"}
    assert header["shared.weight"]["shape"] == [config["vocab_size"], config["d_model"]]
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(DEMO / "spiece.model"))
    assert len(tokenizer) == config["vocab_size"]
    assert (tokenizer.pad_id(), tokenizer.eos_id(), tokenizer.unk_id(), tokenizer.bos_id()) == (0, 1, 2, -1)
