"""What a row and a run may say about a chat: variables, tools, a start of the answer, parts, reasoning, stop tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from inference.config import GenerationConfig
from inference.engine.request import FinishReason
from inference.errors import InputError
from inference.generation.message import ContentReader, ReasoningReader
from inference.generation.stop_strings import HidingMatcher
from inference.generation.text import AnswerRow, EncodedPrompt, Encoder
from inference.inputs.prompts import Prompt, prompt_from_mapping
from inference.tokenizer import Tokenizer, load_tokenizer

QWEN = Path(__file__).parents[1] / "goldens" / "tokenizers" / "qwen"
USER = {"role": "user", "content": "Hi"}
PLAIN = (
    "{% for m in messages %}<{{ m.role }}>{{ m['content'] }}</>{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)
VARIABLES = "{{ enable_thinking }} {{ style }} {{ tools | length if tools else 'no tools' }}"
PARTS = "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}" + (
    "{% for part in m.content %}[{{ part.text }}]{% endfor %}{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(QWEN)


def text_of(tokenizer: Tokenizer, template: str, row: dict[str, Any], **variables: Any) -> str:
    tokenizer = load_tokenizer(QWEN, settings={"chat_template": template})
    encoder = Encoder(tokenizer, len(tokenizer), 512, GenerationConfig(), template_variables=variables)
    return encoder.encode(0, prompt_from_mapping(row, "row", "0")).text


def test_variables_of_the_run_and_of_the_row(tokenizer: Tokenizer) -> None:
    row = {"messages": [USER], "chat_template_kwargs": {"enable_thinking": True}}
    assert text_of(tokenizer, VARIABLES, row, enable_thinking=False, style="x") == "True x no tools"
    row = {"messages": [USER], "tools": [{"type": "function"}]}
    assert text_of(tokenizer, VARIABLES, row, enable_thinking=False, style="x") == "False x 1"
    assert text_of(tokenizer, VARIABLES, {**row, "tools": []}, enable_thinking=0, style="") == "0  no tools"


def test_the_answer_continues_a_last_message(tokenizer: Tokenizer) -> None:
    messages = [USER, {"role": "assistant", "content": "The answer is "}]
    row = {"messages": messages, "continue_final_message": True}
    assert text_of(tokenizer, PLAIN, row) == "<user>Hi</><assistant>The answer is "
    stripping = PLAIN.replace("m['content']", "m['content'] | trim")
    assert text_of(tokenizer, stripping, row) == "<user>Hi</><assistant>The answer is"
    assert text_of(tokenizer, PLAIN, {"messages": [USER], "add_generation_prompt": False}) == "<user>Hi</>"
    with pytest.raises(InputError, match="changes the last message"):
        text_of(tokenizer, "fixed", row)
    with pytest.raises(InputError, match="exclude each other"):
        text_of(tokenizer, PLAIN, {**row, "add_generation_prompt": True})


def test_content_of_null_and_of_parts(tokenizer: Tokenizer) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
    assert text_of(tokenizer, PLAIN, {"messages": [USER, call]}) == "<user>Hi</><assistant></><a>"
    parts = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    assert text_of(tokenizer, PLAIN, {"messages": [parts]}) == "<user>ab</><a>"
    assert tokenizer.apply_chat_template([parts, USER], tokenize=False, chat_template=PARTS) == "[a][b]Hi"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tools": {"a": 1}}, "tools must be a list"),
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs must be an object"),
        ({"continue_final_message": "yes"}, "must be true or false"),
    ],
)
def test_a_row_in_another_form_is_rejected(row: dict[str, Any], message: str, tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match=message):
        text_of(tokenizer, PLAIN, {"messages": [USER], **row})


@pytest.mark.parametrize(
    ("text", "prompt", "expected"),
    [
        ("<think>\nWhy?\n</think>\n\nSo.", "<a>", ("Why?", "So.")),
        ("Why?</think>So.", "<a><think>\n", ("Why?", "So.")),
        ("<think>cut off", "<a>", ("cut off", "")),
        ("<think>\n\n</think>\n\nSo.", "<a>", ("", "So.")),
        ("So.", "<a><think>\n\n</think>\n\n", (None, "So.")),
        ("plain <think> text", "<a>", (None, "plain <think> text")),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_reasoning_is_split_from_the_answer(
    text: str, prompt: str, expected: tuple[str | None, str], size: int
) -> None:
    reader = ReasoningReader(ContentReader(), prompt.rstrip().endswith("<think>"))
    deltas = [delta for place in range(0, len(text), size) for delta in reader.push(text[place : place + size])]
    deltas += reader.finish()
    reasoning, content = ("".join(delta.get(key, "") for delta in deltas) for key in ("reasoning_content", "content"))
    assert (reasoning if reader.has_reasoning else None, content) == expected


class Engine:
    """Notes that a row was ended."""

    ended = False

    def cut(self, request: Any, count: int) -> None:
        del request.output_ids[count:]

    def finish(self, request: Any, reason: FinishReason) -> None:
        self.ended = True
        request.finish(reason)


def answer_of(tokenizer: Tokenizer, ids: Sequence[int], **settings: Any) -> tuple[str, bool]:
    source = EncodedPrompt(0, Prompt("0", "row", text="x"), "x", [1], GenerationConfig(max_new_tokens=99, **settings))
    engine, row = Engine(), AnswerRow.begin(source, source.request(512), tokenizer)
    for token_id in ids:
        row.request.append(token_id)
        row.advance(engine)  # type: ignore[arg-type]
        if engine.ended:
            break
    return row.answer.text, engine.ended


def test_a_stop_string_may_be_or_contain_a_special_token(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("Hello<|im_end|>\nthere", add_special_tokens=False)
    assert answer_of(tokenizer, ids) == ("Hello\nthere", False)
    assert answer_of(tokenizer, ids, stop=["<|im_end|>"]) == ("Hello", True)
    assert answer_of(tokenizer, ids, stop=["o<|im_end|>\n"]) == ("Hell", True)


def test_special_tokens_are_shown_if_requested(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("Hello<|im_end|>", add_special_tokens=False)
    assert answer_of(tokenizer, ids, skip_special_tokens=False) == ("Hello<|im_end|>", False)


def test_hidden_text_is_never_shown() -> None:
    matcher = HidingMatcher(["<x>!"])
    shown = matcher.push("ab", "<x>") + matcher.push("?") + matcher.push("c", "<x>") + matcher.push("!d")
    assert (shown, matcher.matched) == ("ab?c", "<x>!")
    matcher = HidingMatcher(["<x>!"])
    assert matcher.push("ab", "<x>") + matcher.finish() == "ab"
