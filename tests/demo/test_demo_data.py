"""What the demo model is trained and tested on: right answers, good English, nothing held out in training."""

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
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from demo_training import chats, phrases, stories, sums
from demo_training.documents import CHAT_TOKENS, Document
from demo_training.tokenizer import BOS, EOS, Encoder

HERE = Path(__file__).parent
DEMO = HERE.parents[1] / "inference" / "demo"
NOUNS = {noun.english: noun for noun in phrases.nouns()}


def held_out_rows() -> list[dict[str, str]]:
    return [json.loads(line) for line in (HERE / "heldout.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder((DEMO / "tokenizer.model").read_bytes(), prompt_weight=0.1)


@pytest.mark.parametrize(
    ("determiner", "adjective", "noun", "plural", "nominative", "accusative"),
    [
        ("the", "big", "house", False, "das große Haus", "das große Haus"),
        ("the", "old", "dog", False, "der alte Hund", "den alten Hund"),
        ("a", "old", "dog", False, "ein alter Hund", "einen alten Hund"),
        ("a", "new", "book", False, "ein neues Buch", "ein neues Buch"),
        ("my", "small", "cat", False, "meine kleine Katze", "meine kleine Katze"),
        ("this", "young", "boy", False, "dieser junge Junge", "diesen jungen Jungen"),
        ("the", "red", "apple", True, "die roten Äpfel", "die roten Äpfel"),
        ("two", "green", "tree", True, "zwei grüne Bäume", "zwei grüne Bäume"),
        ("your", None, "mouse", True, "deine Mäuse", "deine Mäuse"),
        ("a", "tired", "father", False, "ein müder Vater", "einen müden Vater"),
    ],
)
def test_german_endings(determiner, adjective, noun, plural, nominative, accusative):
    phrase = phrases.NounPhrase(determiner, adjective, NOUNS[noun], plural)
    assert phrase.german() == nominative
    assert phrase.german(accusative=True) == accusative


def test_article_before_a_vowel():
    assert phrases.NounPhrase("a", None, NOUNS["egg"], False).english == "an egg"
    assert phrases.NounPhrase("a", "new", NOUNS["egg"], False).english == "a new egg"


def test_training_draws_no_held_out_combination():
    rng = random.Random(5)
    assert not any(phrases.draw_phrase(rng).is_held_out for _ in range(3000))
    for _ in range(3000):
        first, _, second = sums.draw_problem(rng)
        assert not sums.pair_is_held_out(first, second)


def test_held_out_draws_hold_a_held_out_combination():
    rng = random.Random(6)
    assert all(phrases.draw_phrase(rng, held_out=True).is_held_out for _ in range(500))


def test_a_pair_is_held_out_in_both_orders():
    problems = set(sums.held_out_problems())
    assert 300 < len(problems) < 2000
    assert all((second, sign, first) in problems for first, sign, second in problems)


@given(st.integers(0, sums.LARGEST), st.sampled_from("+-"), st.integers(0, sums.LARGEST))
def test_a_sum_is_right(first, sign, second):
    document = sums.completion(first, sign, second)
    assert int(document.answer) == eval(document.prompt.removesuffix("="))


@given(st.integers())
def test_a_story_is_complete_and_keeps_its_character(seed):
    story = stories.draw_story(random.Random(seed))
    assert not re.search(r"[\[\]{}|]|  |\b[Aa] [aeiou]", story)
    assert story[-1] in '.!"' and story.count('"') % 2 == 0
    assert 60 < len(story.split()) < 200
    names = [name for name in stories.GIRLS + stories.BOYS if re.search(rf"\b{name}\b", story)]
    assert len(names) == 1


def test_a_story_is_about_the_requested_character():
    story = stories.draw_story(random.Random(3), kind="fox", name="Ruby")
    assert story.startswith("Once upon a time") and "fox" in story.split(".")[0] and "Ruby" in story


def test_the_template_matches_the_training_text():
    template = json.loads((DEMO / "tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"]
    assert template == chats.TEMPLATE
    messages = [
        {"role": "system", "content": "Answer in one line."},
        {"role": "user", "content": " What is 2 + 3?\n"},
        {"role": "assistant", "content": "5"},
        {"role": "user", "content": "Hello!"},
    ]
    text = render_template(messages)
    assert text == "<s>" + chats.render(messages) + "<|assistant|>"


def render_template(messages: list[dict[str, str]]) -> str:
    def refuse(message: str):
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment()
    return environment.from_string(chats.TEMPLATE).render(
        messages=messages, bos_token="<s>", add_generation_prompt=True, raise_exception=refuse
    )


def test_the_template_refuses_an_unknown_role():
    with pytest.raises(TemplateError, match="role"):
        render_template([{"role": "tool", "content": "x"}])


def test_weights_are_small_float16_and_fit_the_config():
    config = json.loads((DEMO / "config.json").read_text(encoding="utf-8"))
    content = (DEMO / "model.safetensors").read_bytes()
    assert len(content) <= 4_000_000
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    assert header.pop("__metadata__") == {"format": "pt"}
    assert {entry["dtype"] for entry in header.values()} == {"F16"}
    assert header["model.embed_tokens.weight"]["shape"] == [config["vocab_size"], config["hidden_size"]]
    assert len(header) == 2 + 9 * config["num_hidden_layers"]
    key_size = config["hidden_size"] // config["num_attention_heads"] * config["num_key_value_heads"]
    assert header["model.layers.0.self_attn.k_proj.weight"]["shape"] == [key_size, config["hidden_size"]]


def test_tokenizer_splits_digits_and_falls_back_to_bytes(encoder):
    assert encoder.sp.encode("42", out_type=str) == ["▁", "4", "2"]
    assert encoder.sp.encode("日", out_type=str) == ["▁", "<0xE6>", "<0x97>", "<0xA5>"]


def test_chat_tokens_are_one_piece_each(encoder):
    ids = encoder.encode("<|user|>Hi<|end|><|assistant|>")
    assert ids[0] == BOS
    assert [encoder.sp.id_to_piece(i) for i in (ids[1], ids[-2], ids[-1])] == [
        CHAT_TOKENS[0],
        "<|end|>",
        "<|assistant|>",
    ]
    generation = json.loads((DEMO / "generation_config.json").read_text(encoding="utf-8"))
    assert generation["eos_token_id"] == [EOS, encoder.sp.piece_to_id("<|end|>")]


@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0▁"), max_size=40))
def test_tokenizer_gives_the_text_back(text):
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(DEMO / "tokenizer.model"))
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_samples_train_only_the_answer_and_its_end(encoder):
    sample = encoder.sample(Document("sum", "2 + 3 =", " 5"), random.Random(0))
    assert sample.ids[-1] == EOS
    assert sample.weights == [0.1] * (len(sample.ids) - 3) + [1.0] * 3


def test_held_out_rows_are_held_out_and_right(encoder):
    rows = held_out_rows()
    assert len(rows) == 200 == len({row["prompt"] for row in rows})
    for row in rows:
        prompt = encoder.encode(row["prompt"])
        assert encoder.encode(row["prompt"] + row["answer"])[: len(prompt)] == prompt
        if row["kind"] == "sum":
            first, sign, second = row["prompt"].split()[:3]
            assert sums.pair_is_held_out(int(first), int(second))
            assert row["answer"] == f" {sums.evaluate(int(first), sign, int(second))}"
    translations = {row["prompt"] for row in rows if row["kind"] == "translation"}
    assert len(translations) == 100
    rng = random.Random(0)
    assert not translations & {phrases.draw_document(rng).prompt for _ in range(20000)}


def test_held_out_text_exists():
    text = (HERE / "heldout.txt").read_text(encoding="utf-8")
    assert 18_000 < len(text) < 24_000
    assert "Translate to German:" in text and "Once upon a time" in text
