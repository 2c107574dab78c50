"""The chat's loop on the demo model, commands, what is shown, and the second turn's cost."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from inference.chat.chat import Chat
from inference.chat.commands import COMMANDS
from inference.chat.conversation import Conversation
from inference.chat.screen import DIM, PLAIN, AnswerPrinter, read_turns
from inference.errors import InputError

QUESTION = "Tell me a story about a dog."


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def make(model: Any, tokenizer: Any, said: list[str]) -> Any:
    def make(**more: Any) -> Chat:
        encoder = model.encoder(tokenizer, max_new_tokens=24)
        return Chat(model, tokenizer, encoder, said.append, **more)

    return make


@pytest.fixture
def chat(make: Any) -> Chat:
    return make()


class TestTurns:
    def test_the_second_turn_computes_only_its_own_tokens(self, make: Any, capsys: pytest.CaptureFixture[str]) -> None:
        chat = make(system="A test that nobody else asks.")
        chat.run([QUESTION])
        first = chat._turn.request
        chat.run(["And a cat?"])
        second = chat._turn.request
        prefilled = second.num_prompt_tokens - second.num_reused
        own = second.num_prompt_tokens - first.num_tokens
        # The cache is kept in blocks, of which the last is not full.
        block = chat._model.runner.block_size
        assert first.num_reused < block and prefilled <= own + block < second.num_prompt_tokens
        answers = capsys.readouterr().out.splitlines()
        assert answers == [
            message["content"] for message in chat.conversation.messages if message["role"] == "assistant"
        ]

    def test_answers_are_those_of_predict(self, chat: Chat, model: Any, tokenizer: Any, capsys: Any) -> None:
        from inference import LLM

        chat.run([QUESTION])
        messages = [{"role": "user", "content": QUESTION}]
        expected = next(iter(LLM(model, tokenizer).generate({"messages": messages}, max_new_tokens=24)))
        assert capsys.readouterr().out == expected.text + "\n"

    def test_a_turn_that_fails_is_forgotten(self, chat: Chat, said: list[str]) -> None:
        chat.run(["word " * 600, QUESTION])
        assert said[0].startswith("error: the conversation: ") and chat.failed == 1
        assert [message["role"] for message in chat.conversation.messages] == ["user", "assistant"]

    def test_interrupt_stops_only_the_answer(self, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        chat = make()
        assert not chat.interrupt()
        shown = threading.Event()
        put = AnswerPrinter._put

        def slow(self: AnswerPrinter, text: str) -> None:
            put(self, text)
            if not shown.is_set():
                shown.set()
                assert chat.interrupt()

        monkeypatch.setattr(AnswerPrinter, "_put", slow)
        chat.run(["/set ignore_eos True", "/set max_new_tokens 400", QUESTION, "/set max_new_tokens 3", "And a cat?"])
        first, second = (message["content"] for message in chat.conversation.messages if message["role"] == "assistant")
        assert shown.is_set() and len(first) < 400 and second and chat.failed == 0

    def test_the_file_keeps_the_conversation(self, make: Any, tmp_path: Path) -> None:
        path = tmp_path / "talk.json"
        make(history=path, system="Be kind.").run(["/set seed 3", QUESTION])
        again = make(history=path)
        assert again.conversation.system == "Be kind." and again.conversation.settings == {"seed": 3}
        assert len(again.conversation.messages) == 2

    def test_figures_after_each_answer(self, make: Any, said: list[str]) -> None:
        make(stats=True).run([QUESTION])
        assert "tokens in" in said[0] and "24 out" in said[0] and "tok/s" in said[0]


class TestCommands:
    def test_settings(self, chat: Chat, said: list[str]) -> None:
        chat.run(
            ["/set", "/set temperature 0.7", "/set temprature 1", "/set temperature x", "/set", "/set temperature"]
        )
        assert said[0] == "nothing is set" and said[1] == "temperature 0.7"
        assert "did you mean 'temperature'" in said[2] and "must be a number" in said[3]
        assert said[4:] == ["temperature 0.7", "temperature is the model's own again"]
        assert chat.conversation.settings == {} and chat.failed == 2

    def test_system_reset_and_stats(self, chat: Chat, said: list[str]) -> None:
        chat.run(["/stats", "/system", "/system Be kind.", "hello", "/reset", "/system"])
        assert said[:3] == ["there is no answer yet", "system prompt: (none)", "system prompt: Be kind."]
        assert chat.conversation.prompt()["messages"] == [{"role": "system", "content": "Be kind."}]
        assert said[-1] == "system prompt: Be kind."

    def test_regenerate(self, chat: Chat, said: list[str]) -> None:
        chat.run(["/regen", "/set temperature 1.5", "/set do_sample True", QUESTION])
        assert said[0] == "error: there is no answer to regenerate"
        first = list(chat.conversation.messages)
        chat.run(["/regen"])
        assert chat.conversation.messages[0] == first[0] and len(chat.conversation.messages) == 2

    def test_save_and_load(self, chat: Chat, said: list[str], tmp_path: Path) -> None:
        path = tmp_path / "talk.json"
        chat.run([QUESTION, f"/save {path}", "/reset", f"/load {path}", "/save", "/load no/such/file"])
        assert len(chat.conversation.messages) == 2 and "no/such/file cannot be read" in said[-1]
        assert json.loads(path.read_text(encoding="utf-8"))["messages"] == chat.conversation.messages

    def test_help_lists_all_commands_and_typos_are_reported(self, chat: Chat, said: list[str]) -> None:
        chat.run(["/help", "/rest"])
        assert all(f"/{row.name}" in said[0] for row in COMMANDS) and "did you mean 'reset'" in said[1]

    @pytest.mark.parametrize("text", ["", "[]", '{"messages": 5}', '{"messages": [{"role": 1, "content": ""}]}', "{"])
    def test_a_file_that_is_not_a_conversation(self, text: str, tmp_path: Path) -> None:
        path = tmp_path / "x.json"
        path.write_text(text)
        with pytest.raises(InputError, match="not a saved conversation|not JSON"):
            Conversation.load(path)


class TestScreen:
    @pytest.mark.parametrize(
        ("lines", "turns"),
        [
            (["a\n", "\n", " b \n"], ["a", "b"]),
            (['"""a\n', "b\n", 'c"""\n', "d\n"], ["a\nb\nc", "d"]),
            (['"""\n', "a\n", '"""\n'], ["a"]),
            (['"""a"""\n'], ["a"]),
            (['"""a\n'], ["a"]),
        ],
    )
    def test_turns(self, lines: list[str], turns: list[str]) -> None:
        assert list(read_turns(iter(lines))) == turns

    @pytest.mark.parametrize("size", [1, 3, 100])
    def test_thinking_is_dim(self, size: int, tmp_path: Path) -> None:
        text = "a <b <think>why</think>\nso < it is"
        for dims, expected in ((True, f"a <b {DIM}why{PLAIN}\nso < it is\n"), (False, f"{text}\n")):
            with (tmp_path / "out").open("w+") as file:
                printer = AnswerPrinter(file, dims)
                for place in range(0, len(text), size):
                    printer.write(text[place : place + size])
                printer.end()
                file.seek(0)
                assert file.read() == expected
