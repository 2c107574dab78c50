"""The record of an answer: the same fields for Python and JSON."""

from __future__ import annotations

import json
from dataclasses import fields, replace

from inference.config import GenerationConfig
from inference.engine.request import FinishReason, Request, TokenLogprob
from inference.errors import GenerationError, InputError
from inference.generation.record import Completion, completion_of, failed_completion, failure_of
from inference.generation.text import Answer, EncodedPrompt
from inference.inputs.prompts import Prompt

# Fields that JSON has only if they were given.
GIVEN = ("attempts", "value", "input_digest", "tool_calls")
OPTIONAL = {"row", "seed", "truncated_tokens", "logprobs", "samples", "reasoning"}


def answer(**settings: object) -> Answer:
    generation = GenerationConfig().updated(**settings)
    source = EncodedPrompt(3, Prompt("name", "in.jsonl:4", text="ab"), "ab", [1, 2], generation, truncated=5)
    request = Request("name", [1, 2], generation, 9, seed=7, output_ids=[5, 6, 0], num_reused=1)
    request.logprobs = [TokenLogprob(token, -0.5, ((token, -0.5),)) for token in (5, 6, 0)]
    request.finish(FinishReason.STOP)
    return Answer(source, request, "text")


def test_ids_logprobs_and_the_count_have_one_length() -> None:
    completion = completion_of(answer(logprobs=1), "m")
    assert completion.token_ids == (5, 6, 0) and completion.completion_tokens == 3
    assert completion.logprobs is not None
    assert [item.token_id for item in completion.logprobs] == [5, 6, 0]
    assert (completion.row, completion.index, completion.cached_tokens, completion.truncated_tokens) == (3, 3, 1, 5)


def test_json_has_every_field_of_the_dataclass() -> None:
    first = answer(logprobs=1, do_sample=True)
    first = replace(first, source=replace(first.source, is_chat=True), text="<think>hm</think>yes")
    first = replace(first, samples=[first, replace(first, text="no")])
    made = completion_of(first, "m").as_dict()
    names = [item.name for item in fields(Completion)]
    assert [name for name in names if name not in GIVEN] == list(made)
    assert (made["reasoning"], made["text"]) == ("hm", "yes")
    assert [sample["text"] for sample in made["samples"]] == ["yes", "no"]
    assert made["logprobs"][2] == {"token_id": 0, "logprob": -0.5, "top": [[0, -0.5]]}
    assert made["seed"] == 7 and json.loads(json.dumps(made)) == made
    assert "prompt" not in completion_of(answer(), "m").as_dict(echo=False)


def test_fields_that_were_not_requested_are_left_out() -> None:
    made = replace(completion_of(answer(), "m"), row=None, truncated_tokens=None).as_dict()
    assert not OPTIONAL & set(made)
    assert completion_of(answer(), "m").seed is None and made["error"] is None


def test_a_row_without_an_answer_has_the_same_keys() -> None:
    made = failed_completion("a", 1, "bad_row", "f:2: bad", line=2, model="m").as_dict()
    assert set(completion_of(answer(), "m").as_dict()) - set(made) == {"truncated_tokens"}
    assert made["error"] == {"type": "bad_row", "message": "f:2: bad", "line": 2}
    assert made["text"] is made["token_ids"] is made["completion_tokens"] is None and made["finish_reason"] == "error"


def test_the_error_type_names_the_cause() -> None:
    source = answer().source
    for error, kind in ((InputError("too long"), "bad_row"), (GenerationError("not numbers"), "model_failed")):
        failed = failure_of(source, error)
        assert failed.error is not None
        assert (failed.error.type, failed.error.line, str(failed.error)) == (kind, 4, f"in.jsonl:4: {error}")
