"""From prompts to texts: what is encoded, what is cut or refused, and that streamed text is decoded text."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import END, ByteTokenizer, ScriptModel, ToyModel

from examples import examples
from inference.config import GenerationConfig
from inference.engine.engine import Engine
from inference.engine.request import FinishReason
from inference.errors import InputError
from inference.generation.text import MINIMUM_KEPT, Answer, EncodedPrompt, Encoder, TextEvent, TextGenerator
from inference.inputs.prompts import Prompt
from inference.tokenizer import Tokenizer, load_tokenizer

TOKENIZERS = Path(__file__).parents[1] / "goldens" / "tokenizers"
BYTES = ByteTokenizer()
PROMPT = "Say:"


def encoder(tokenizer: Tokenizer | None = BYTES, context: int = 64, vocab: int = 257, **options) -> Encoder:
    own = {name: options.pop(name) for name in ("chat", "truncate") if name in options}
    return Encoder(tokenizer, vocab, context, GenerationConfig(**options), **own)


def prompt(text: str | None = PROMPT, **fields) -> Prompt:
    return Prompt(fields.pop("custom_id", "0"), "prompts.jsonl:3", text, **fields)


def stream(generator: TextGenerator, sources: Iterable[EncodedPrompt]) -> Iterator[TextEvent]:
    """Text of all prompts, which are taken when there is room."""
    waiting = deque(sources)
    try:
        while waiting or generator.busy:
            while waiting and generator.has_room:
                generator.add(waiting.popleft())
            yield from generator.step()
    finally:
        generator.cancel()


def whole_answers(generator: TextGenerator, sources: Iterable[EncodedPrompt]) -> Iterator[Answer]:
    return (event.answer for event in stream(generator, sources) if event.finished)


def say(script: str | bytes, pieces: list[str] | None = None, **options) -> TextEvent:
    """The last event of a row whose model says `script`; the texts of all events are put into `pieces`."""
    data = script.encode() if isinstance(script, str) else script
    model = ScriptModel(data, len(PROMPT))
    encoded = encoder(context=model.context_length, **{"eos_token_id": END, **options}).encode(0, prompt())
    events = list(stream(TextGenerator(Engine(model), BYTES), [encoded]))
    assert [event.finished for event in events] == [False] * (len(events) - 1) + [True]
    if pieces is not None:
        pieces.extend(event.text for event in events)
    assert "".join(event.text for event in events) == events[-1].answer.text
    return events[-1]


class TestStreaming:
    def test_text_arrives_as_it_is_generated_in_whole_characters(self) -> None:
        pieces: list[str] = []
        event = say("né🙂 日本", pieces)
        assert event.answer.text == "né🙂 日本"
        assert pieces == ["n", "", "é", "", "", "", "🙂", " ", "", "", "日", "", "", "本", ""]
        assert event.answer.request.finish_reason is FinishReason.STOP

    def test_a_character_that_is_cut_off_shows_as_damaged(self) -> None:
        assert say("a🙂", max_new_tokens=3).answer.text == "a\ufffd"

    def test_bytes_that_are_not_text(self) -> None:
        assert say(b"a\xffb\xc3").answer.text == "a\ufffdb\ufffd"

    @given(st.binary(max_size=40))
    def test_streamed_text_is_decoded_text(self, script: bytes) -> None:
        assert say(script).answer.text == BYTES.decode(list(script))

    @pytest.mark.parametrize("name", ["spm", "spm_and_json", "llama3", "qwen"])
    def test_an_answer_continues_its_prompt(self, name: str) -> None:
        """Prompt and answer decoded together are the prompt's text and the streamed text, spaces included."""
        tokenizer = load_tokenizer(TOKENIZERS / name)
        model = ToyModel(vocabulary=len(tokenizer), context_length=64)
        options = {"tokenizer": tokenizer, "vocab": len(tokenizer), "max_new_tokens": 30, "do_sample": True}
        make = encoder(**options, temperature=9.0)
        sources = []
        for row in range(8):
            sources.append(make.encode(row, prompt("The cat", custom_id=str(row), settings={"seed": row})))
        for answer in whole_answers(TextGenerator(Engine(model), tokenizer), sources):
            ids = answer.source.ids
            whole = tokenizer.decode(ids + answer.request.answer_ids)
            assert whole == tokenizer.decode(ids) + answer.text
            assert tokenizer.decode(ids) == "The cat"

    def test_special_tokens_are_omitted_or_kept(self) -> None:
        model = ScriptModel(b"ab", len(PROMPT))
        source = encoder(max_new_tokens=4, ignore_eos=True, eos_token_id=END).encode(0, prompt())
        (answer,) = whole_answers(TextGenerator(Engine(model), BYTES), [source])
        assert answer.text == "ab" and answer.request.answer_ids == [97, 98, END, END]


class TestStopStrings:
    @pytest.mark.parametrize(
        ("script", "stops", "text"),
        [
            ("one. two", [". "], "one"),
            ("one\n\ntwo", "\n\n", "one"),
            ("é🙂ü", ["🙂"], "é"),
            ("ababac", ["abac"], "ab"),
            ("abcd", ["bcd", "c"], "ab"),
            ("no stop", ["stopp"], "no stop"),
            ("stop", ["stop"], ""),
        ],
    )
    def test_across_tokens(self, script: str, stops: str | list[str], text: str) -> None:
        event = say(script, stop=stops)
        assert event.answer.text == text
        assert event.answer.request.finish_reason is FinishReason.STOP

    def test_the_row_is_not_computed_further(self) -> None:
        request = say("one. two", stop=["."]).answer.request
        assert BYTES.decode(request.output_ids) == "one."

    def test_with_the_last_allowed_token(self) -> None:
        event = say("one. two", stop=["."], max_new_tokens=4)
        assert event.answer.text == "one" and event.answer.request.finish_reason is FinishReason.STOP

    def test_a_partial_stop_string_at_the_limit_is_shown(self) -> None:
        event = say("one## two", stop=["###"], max_new_tokens=5)
        assert event.answer.text == "one##" and event.answer.request.finish_reason is FinishReason.LENGTH

    @given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=3), max_size=3))
    def test_stop_strings_are_never_shown_in_part(self, script: str, stops: list[str]) -> None:
        pieces: list[str] = []
        text = say(script, pieces, stop=stops).answer.text
        found = re.search("|".join(re.escape(stop) for stop in stops), script) if stops else None
        assert script.startswith(text) and len(text) <= (found.start() if found else len(script)) + 2
        assert not any(stop in text for stop in stops)
        if found is None:
            assert text == script


def test_rows_are_separate_and_have_their_own_settings() -> None:
    rows = [
        prompt(custom_id="a", settings={"max_new_tokens": 2}),
        prompt(custom_id="b", settings={"stop": ["lo"], "logprobs": 1}),
        prompt(custom_id="c"),
    ]
    make = encoder(eos_token_id=END, context=512)
    sources = make.encode_all(rows)
    assert make.generation.stop == ()
    answers = list(whole_answers(TextGenerator(Engine(ScriptModel(b"hello", len(PROMPT))), BYTES), sources))
    found = {a.request.request_id: (a.row, a.text, a.request.finish_reason.value) for a in answers}
    assert found == {"a": (0, "he", "length"), "b": (1, "hel", "stop"), "c": (2, "hello", "stop")}
    assert [a.request.request_id for a in answers] == ["a", "b", "c"], "not in the order in which they finish"
    assert {a.request.request_id: len(a.request.logprobs) for a in answers} == {"a": 0, "b": 5, "c": 0}


def test_dropping_the_stream_ends_all_rows() -> None:
    engine = Engine(ScriptModel(b"hello", len(PROMPT)), max_sequences=1)
    sources = encoder(eos_token_id=END, context=512).encode_all([prompt(custom_id=str(i)) for i in range(3)])
    events = stream(TextGenerator(engine, BYTES), sources)
    first = next(events)
    events.close()
    assert not engine.busy
    assert first.answer.request.finish_reason is FinishReason.CANCELLED


def test_a_rejected_row_leaves_nothing_behind() -> None:
    engine = Engine(ScriptModel(b"hello", len(PROMPT), context_length=16))
    good = encoder(context=16).encode(0, prompt())
    bad = EncodedPrompt(1, prompt(custom_id="bad"), "", [], GenerationConfig())
    with pytest.raises(InputError, match="request bad"):
        list(stream(TextGenerator(engine, BYTES), [good, bad]))
    assert not engine.busy


class TestEncoding:
    def test_texts_ids_and_chats(self) -> None:
        template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
        tokenizer = ByteTokenizer()
        tokenizer.config.chat_templates["default"] = template
        make = encoder(tokenizer)
        text, ids, chat = make.encode_all(
            [prompt("hé"), prompt(None, token_ids=(104, 105)), prompt(None, messages=({"role": "x", "content": "y"},))]
        )
        assert (text.text, text.ids, text.is_chat) == ("hé", list("hé".encode()), False)
        assert (ids.text, ids.ids, ids.is_chat) == ("hi", [104, 105], False)
        assert (chat.text, bytes(chat.ids), chat.is_chat) == ("[x] y\n", b"[x] y\n", True)
        assert [source.row for source in (text, ids, chat)] == [0, 1, 2]
        (asked,) = encoder(tokenizer, chat=True).encode_all([prompt("hi")])
        assert (asked.text, asked.is_chat) == ("[user] hi\n", True)
        (plain,) = encoder(tokenizer, chat=True).encode_all([prompt(None, token_ids=(1,))])
        assert not plain.is_chat

    def test_a_chat_answer_is_a_separate_text(self) -> None:
        tokenizer = load_tokenizer(TOKENIZERS / "spm")
        word = next(i for i in range(len(tokenizer)) if re.fullmatch(rb" [a-z]{2,}", tokenizer.token_bytes(i)))
        ids, texts = tokenizer.encode("x"), {}
        for is_chat in (True, False):
            model = ScriptModel([word], len(ids), vocabulary=len(tokenizer))
            source = EncodedPrompt(0, prompt(), "x", ids, GenerationConfig(max_new_tokens=1), is_chat)
            (answer,) = whole_answers(TextGenerator(Engine(model), tokenizer), [source])
            texts[is_chat] = answer.text
        assert texts[True].isalpha() and texts[False] == " " + texts[True]

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            (prompt(None, token_ids=(1, 300)), "token id 300 is outside the vocabulary of 257"),
            (prompt(None, token_ids=(1, -1)), "token id -1 is outside the vocabulary of 257"),
            (prompt(None, token_ids=()), "the prompt has no tokens"),
            (prompt(""), "the prompt has no tokens"),
            (prompt("x" * 64), "the prompt has 64 tokens, at most 63 leave room .*context is 64.*--truncate"),
            (prompt("x\ud800"), "half of a character"),
            (prompt(None, messages=({"role": "user", "content": "x"},)), "template"),
            (prompt(settings={"max_new_token": 3}), "unknown generation setting 'max_new_token'"),
            (prompt(settings={"min_new_tokens": 9, "max_new_tokens": 3}), "min_new_tokens 9 is greater"),
        ],
    )
    def test_prompts_that_cannot_be_used(self, row: Prompt, message: str) -> None:
        with pytest.raises(InputError, match=rf"^prompts\.jsonl:3: .*{message}"):
            encoder().encode_all([row])

    def test_without_a_tokenizer(self) -> None:
        (source,) = encoder(None).encode_all([prompt(None, token_ids=(3, 4))])
        assert (source.ids, source.text) == ([3, 4], "")
        with pytest.raises(InputError, match="must be token ids"):
            encoder(None).encode_all([prompt("text")])

    def test_a_tokenizer_of_another_model(self) -> None:
        with pytest.raises(InputError, match="the tokenizer gives id 121, the model's vocabulary has 100.*another"):
            encoder(vocab=100).encode_all([prompt("Say")])

    def test_a_prompt_that_just_fits(self) -> None:
        (source,) = encoder(context=8).encode_all([prompt("1234567")])
        request = source.request(8)
        assert (source.truncated, request.max_new_tokens) == (0, 1)
        assert bytes(request.prompt_ids) == b"1234567"

    @pytest.mark.parametrize(("side", "kept"), [("left", b"23456789"), ("right", b"12345678")])
    def test_cutting_a_long_prompt(self, side: str, kept: bytes) -> None:
        (source,) = encoder(context=9, truncate=side).encode_all([prompt("123456789")])
        assert (bytes(source.ids), source.truncated) == (kept, 1)
        assert source.request(9).max_new_tokens == 1
        (short,) = encoder(context=9, truncate=side).encode_all([prompt("1234")])
        assert (bytes(short.ids), short.truncated) == (b"1234", 0)

    def test_a_cut_prompt_leaves_room_for_the_whole_answer(self) -> None:
        text = "".join(chr(65 + i % 26) for i in range(90))
        (source,) = encoder(context=64, max_new_tokens=40, truncate="left").encode_all([prompt(text)])
        assert (bytes(source.ids), source.request(64).max_new_tokens) == (text[-24:].encode(), 40)
        (greedy,) = encoder(context=64, max_new_tokens=60, truncate="right").encode_all([prompt(text)])
        assert bytes(greedy.ids) == text[:16].encode()

    @pytest.mark.parametrize(("new", "kept"), [(20, 44), (47, 17), (48, MINIMUM_KEPT), (500, MINIMUM_KEPT)])
    def test_a_cut_prompt_leaves_room_for_its_answer(self, new: int, kept: int) -> None:
        text = "".join(chr(48 + i) for i in range(70))
        for side, part in (("left", text[-kept:]), ("right", text[:kept])):
            (source,) = encoder(context=64, truncate=side, max_new_tokens=new).encode_all([prompt(text)])
            assert (bytes(source.ids).decode(), source.truncated) == (part, 70 - kept)
            assert source.request(64).max_new_tokens == min(new, 64 - kept)

    def test_max_length_limits_the_prompt_too(self) -> None:
        with pytest.raises(InputError, match="at most 4 leave room for an answer .max_length is 5"):
            encoder(max_length=5).encode_all([prompt("12345")])
        (source,) = encoder(max_length=5, truncate="left").encode_all([prompt("12345")])
        assert bytes(source.ids) == b"2345" and source.request(64).max_new_tokens == 1
        (other,) = encoder(max_length=5, max_new_tokens=2).encode_all([prompt("12345")])
        assert other.request(64).max_new_tokens == 2

    @pytest.mark.parametrize("side", [None, "left", "right"])
    def test_no_space_for_any_prompt(self, side: str | None) -> None:
        with pytest.raises(InputError, match="max_length is 1"):
            encoder(max_length=1, truncate=side).encode_all([prompt("12345")])

    @given(
        st.integers(1, 80), st.integers(1, 90), st.integers(1, 90), st.booleans(), st.sampled_from(["left", "right"])
    )
    @examples(200)
    def test_encoded_prompts_can_run(self, length: int, new: int, total: int, by_total: bool, side: str) -> None:
        """An encoder's prompt is never refused by the engine."""
        options = {"max_length": total} if by_total else {"max_new_tokens": new}
        try:
            (source,) = encoder(truncate=side, **options).encode_all([prompt("x" * length)])
        except InputError:
            assert by_total and total == 1
            return
        Engine(ToyModel(num_blocks=70, block_size=1)).add(source.request(64))
