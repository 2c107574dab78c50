"""Answers of the demo model: every way of giving prompts, every form of output, every setting. Runs are shared."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from inference.tokenizer import load_tokenizer

DEMO = Path(__file__).parents[2] / "inference" / "demo"
STORY = "Once upon a time"
FIELDS = [
    "custom_id",
    "row",
    "prompt",
    "text",
    "token_ids",
    "finish_reason",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "ttft_seconds",
    "total_seconds",
    "model",
    "error",
]
IDS = load_tokenizer(DEMO).encode("2 + 3 =")
PAD = 3
ROWS: list[dict[str, Any]] = [
    {"custom_id": "text", "prompt": "12 + 7 ="},
    {"custom_id": "ids", "prompt": IDS},
    {"custom_id": "ends in pad", "prompt": [*IDS, PAD, PAD], "max_new_tokens": 2},
    {"custom_id": "chat", "messages": [{"role": "user", "content": "What is 2 + 3?"}]},
    {"custom_id": "short", "prompt": STORY, "max_new_tokens": 5},
    {"custom_id": "stop", "prompt": STORY, "stop": ["time", " was"]},
    {"custom_id": "logprobs", "prompt": "4 + 4 =", "logprobs": 2},
    {"custom_id": "cold", "prompt": "4 + 4 =", "do_sample": True, "temperature": 0},
    {"custom_id": "sample 0", "prompt": STORY, "do_sample": True, "temperature": 2.0, "seed": 0, "max_new_tokens": 12},
    {"custom_id": "sample 1", "prompt": STORY, "do_sample": True, "temperature": 2.0, "seed": 1, "max_new_tokens": 12},
    {"custom_id": "again 0", "prompt": STORY, "do_sample": True, "temperature": 2.0, "seed": 0, "max_new_tokens": 12},
    {"custom_id": "long", "prompt": STORY, "ignore_eos": True, "max_length": 40},
]
SAMPLED = ("sample 0", "sample 1", "again 0")


def jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def everything(shared_cli):
    """One run with every way of giving prompts, as JSON, also saved."""
    shared_cli.write("rows.jsonl", jsonl(ROWS[:3]) + "\n" + jsonl(ROWS[3:]))
    shared_cli.write("lines.txt", "\ufeff2 + 2 =\r\n\r\nTranslate to German: the big house\n".encode())
    result = shared_cli.demo(
        *("--predict_data", "rows.jsonl", "lines.txt", "--output_format", "json", "--predict_data", "5 + 5 ="),
        *("Translate to English: das große Haus", "-", "--save_file", "saved.jsonl"),
        stdin="3 + 1 =\n\n9 - 4 =\n",
        writes=("saved.jsonl", "saved.jsonl.job"),
    ).answered()
    assert result.out == "", "records with a file of their own go there alone"
    return dataclasses.replace(result, out=(shared_cli.directory / "saved.jsonl").read_text())


def test_every_row_is_answered_once(everything):
    named = [row["custom_id"] for row in ROWS]
    numbered = [str(number) for number in range(len(ROWS), len(ROWS) + 6)]
    assert sorted(row["custom_id"] for row in everything.rows) == sorted(named + numbered)


def test_answers_are_right(everything):
    rows = everything.by_id
    answers = {row["prompt"]: row["text"] for row in rows.values() if row["custom_id"].isdecimal()}
    assert answers == {
        "2 + 2 =": " 4",
        "Translate to German: the big house": " das große Haus",
        "5 + 5 =": " 10",
        "Translate to English: das große Haus": " the big house",
        "3 + 1 =": " 4",
        "9 - 4 =": " 5",
    }
    assert rows["text"]["text"] == " 19"
    assert rows["ids"]["text"] == " 5"
    assert rows["chat"]["text"] == "5"
    assert rows["chat"]["prompt"].endswith("<|user|>What is 2 + 3?<|end|><|assistant|>")


def test_fields_of_a_row(everything):
    for name, row in everything.by_id.items():
        extra = ["seed"] if name in SAMPLED else ["logprobs"] if name == "logprobs" else []
        # A row of a file without a name of its own is known by a digest, for --resume.
        digest = ["input_digest"] if name.isdecimal() and "input_digest" in row else []
        assert list(row) == FIELDS + extra + digest
        assert row["model"] == "demo"
        assert row["completion_tokens"] == len(row["token_ids"])
        assert 0 < row["ttft_seconds"] <= row["total_seconds"]
        assert row["finish_reason"] in ("stop", "length")
    assert everything.by_id["text"]["prompt_tokens"] == len(IDS) + 1


def test_prompts_that_end_in_the_pad_id_keep_their_length(everything):
    row = everything.by_id["ends in pad"]
    assert row["prompt_tokens"] == len(IDS) + 2
    assert row["completion_tokens"] <= 2


def test_lengths_and_stop_strings(everything):
    rows = everything.by_id
    assert (rows["short"]["finish_reason"], rows["short"]["completion_tokens"]) == ("length", 5)
    assert rows["stop"]["finish_reason"] == "stop"
    assert rows["stop"]["text"] == ", there"
    assert rows["long"]["prompt_tokens"] + rows["long"]["completion_tokens"] == 40
    assert rows["text"]["finish_reason"] == "stop"


def test_logprobs(everything):
    row = everything.by_id["logprobs"]
    assert [item["token_id"] for item in row["logprobs"]] == row["token_ids"]
    for item in row["logprobs"]:
        assert len(item["top"]) == 2
        # Greedy: the chosen token is the likeliest.
        assert item["top"][0] == [item["token_id"], item["logprob"]]
        assert 0 >= item["logprob"] > item["top"][1][1]


def test_seeds_of_rows(everything):
    texts = {name: everything.by_id[name]["text"] for name in SAMPLED}
    assert texts["sample 0"] == texts["again 0"] != texts["sample 1"]
    assert [everything.by_id[name]["seed"] for name in SAMPLED] == [0, 1, 0]


def test_temperature_zero_is_greedy(everything):
    assert everything.by_id["cold"]["text"] == everything.by_id["logprobs"]["text"] == " 8"


def test_stderr_has_everything_except_the_answers(everything):
    cache, notes, work, start = everything.err.splitlines()
    assert re.match(r"KV cache: [\d,]+ positions, \d+ MiB, sized to work and memory; at most \d+ rows at once$", cache)
    assert notes == "passed over 3 blank lines"
    rows = everything.rows
    tokens_in, tokens_out = (sum(row[f"{kind}_tokens"] for row in rows) for kind in ("prompt", "completion"))
    assert re.match(rf"18 prompts: {tokens_in} tokens in, [\d,.]+ tok/s; {tokens_out} out, ", work)
    for part in ("TTFT", "peak memory"):
        assert part in work
    for part in ("importing MindSpore", "weights", "compiling", "after the process started"):
        assert part in start


@pytest.fixture(scope="module")
def one_by_one(shared_cli, everything):
    """The same rows, never two at a time, without a cache of keys and values, and with the flags for greedy."""
    return shared_cli.demo(
        *("--predict_data", "rows.jsonl", "--output_format", "json", "--predict_batch_size", "1"),
        *("--use_past", "False"),
    ).answered()


def test_batching_and_the_cache_do_not_change_answers(everything, one_by_one):
    for name, row in one_by_one.by_id.items():
        for field in ("text", "token_ids", "finish_reason", "prompt_tokens"):
            assert row[field] == everything.by_id[name][field]
    # One at a time they finish in order.
    assert [row["custom_id"] for row in one_by_one.rows] == [row["custom_id"] for row in ROWS]


@pytest.fixture(scope="module")
def mindformers(shared_cli):
    """MindFormers' flags and form; three rows in batches of two; a file that was there."""
    shared_cli.write("old.json", "old\n")
    return shared_cli(
        *("--config", "demo", "--run_mode", "predict", "--use_parallel", "False", "--device_target", "CPU"),
        *(
            "--device_id",
            "0",
            "--mode",
            "0",
            "--predict_batch_size",
            "2",
            "--predict_data",
            STORY,
            "2 + 3 =",
            "4 + 4 =",
        ),
        *("--do_sample", "True", "--temperature", "0", "--seed", "0", "--output_format", "mindformers"),
        *("--max_new_tokens", "9", "--save_file", "old.json", "--overwrite", "--register_path", "x"),
    ).answered()


def test_mindformers_form_keeps_the_order_of_the_prompts(mindformers, shared_cli, everything):
    texts = [row["text_generation_text"] for row in mindformers.rows]
    assert [list(row) for row in mindformers.rows] == [["text_generation_text"]] * 3
    assert texts[0][0].startswith(STORY + everything.by_id["short"]["text"])
    assert texts[1:] == [["2 + 3 = 5"], ["4 + 4 = 8"]]
    assert (shared_cli.directory / "old.json").read_text() == mindformers.out
    assert mindformers.err.startswith("without effect here: register_path\n")


def sampled(cli, *arguments: str) -> list[str]:
    flags = ("--do_sample", "True", "--temperature", "1.5", "--max_new_tokens", "12", "--output_format", "json")
    rows = cli.demo("--predict_data", STORY, "2 + 3 =", *flags, *arguments).answered().by_id
    return [rows[name]["text"] for name in ("0", "1")]


def test_seed_zero_gives_the_same_text_in_any_batch(shared_cli):
    assert sampled(shared_cli, "--seed", "0") == sampled(shared_cli, "--seed", "0", "--predict_batch_size", "1")


def test_text_rows_are_printed_one_after_the_other(shared_cli):
    shared_cli.write("chats.txt", "Tell me a story about a girl named Lily.\nWhat is 4 + 4?\n")
    result = shared_cli.demo(
        *("--predict_data", "chats.txt", "--chat", "--stream", "--save_file", "chats.out"), writes=("chats.out",)
    ).answered()
    story, total = result.out.splitlines()
    assert "Lily" in story
    assert total == "8"
    # The second is finished long before the first, and yet comes second in the file too.
    assert (shared_cli.directory / "chats.out").read_text() == result.out


def test_echo_stop_and_dotted_flags(shared_cli):
    flags = ("--echo", "--no-stream", "--stop", "upon", "was", "--generation_config.top_k=3", "--do_sample", "False")
    result = shared_cli.demo(
        "--predict_data", STORY, "--save_file", "echo.txt", *flags, writes=("echo.txt",)
    ).answered()
    assert result.out == f"{STORY}, there \n"
    assert (shared_cli.directory / "echo.txt").read_text() == result.out


@pytest.mark.parametrize("side", ["left", "right"])
def test_truncate(shared_cli, side):
    """A prompt that is too long is cut so that an answer of 256 tokens has room."""
    text = f"{STORY} {'and ' * 600} 7 + 2 ="
    ids = load_tokenizer(DEMO).encode(text)
    cut = ids[-256:] if side == "left" else ids[:256]
    shared_cli.write("long.jsonl", jsonl([{"prompt": text, "custom_id": "long"}, {"prompt": cut, "custom_id": "cut"}]))
    result = shared_cli.demo(
        *("--predict_data", "long.jsonl", "--truncate", side, "--output_format", "json", "--logprobs", "3")
    ).answered()
    assert result.err.startswith(f"cut 1 prompt to the model's context, on the {side}\n")
    long, kept = result.by_id["long"], result.by_id["cut"]
    assert long["truncated_tokens"] == len(ids) - 256
    assert "truncated_tokens" not in kept
    assert long["prompt_tokens"] == kept["prompt_tokens"] == 256
    assert long["token_ids"] == kept["token_ids"]
    assert long["logprobs"][0]["top"] == [
        [token, pytest.approx(p, abs=1e-4)] for token, p in kept["logprobs"][0]["top"]
    ]


def test_random_weights_run_only_on_request(shared_cli):
    config = """
model:
  arch: {{type: LlamaForCausalLM}}
  model_config: {{vocab_size: 1280, hidden_size: 8, intermediate_size: 16, num_layers: 1, num_heads: 2, seq_length: 64}}
processor:
  tokenizer: {{vocab_file: {}}}
"""
    shared_cli.write("tiny.yaml", config.format(DEMO / "tokenizer.model"))
    arguments = ("--config", "tiny.yaml", "--predict_data", STORY, "--max_new_tokens", "3", "--output_format", "json")
    result = shared_cli(*arguments, "--random_weights").answered()
    assert result.rows[0]["completion_tokens"] == 3
    assert result.err.splitlines()[0] == "weights are random, as asked: the answers mean nothing"
