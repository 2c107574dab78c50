"""Chat templates: chosen, rendered, refused; and never more than a template."""

from __future__ import annotations

from typing import Any

import pytest

from inference.errors import InputError, TokenizerError
from inference.tokenizer import Tokenizer
from inference.tokenizer.chat import render_chat
from inference.tokenizer.tokenizer_config import TokenizerConfig

USER = [{"role": "user", "content": "Hi"}]


class Letters(Tokenizer):
    """A letter a token."""

    vocab_size = 0x110000

    def encode_text(self, text: str, allow_special: bool = True) -> list[int]:
        return [ord(letter) for letter in text]

    def token_bytes(self, token_id: int) -> bytes:
        return chr(token_id).encode()

    def id_to_token(self, token_id: int) -> str:
        return chr(token_id)

    def token_to_id(self, token: str) -> int | None:
        return ord(token) if len(token) == 1 else None


def letters(**templates: str) -> Letters:
    return Letters(TokenizerConfig(tokens={"bos_token": "^", "eos_token": None}, chat_templates=templates))


def test_text_and_ids() -> None:
    template = "{{ bos_token }}{{ eos_token }}{{ messages[0].content }}{{ ':' if add_generation_prompt }}"
    tokenizer = letters(default=template)
    assert tokenizer.chat_template == template
    assert tokenizer.apply_chat_template(USER, tokenize=False) == "^Hi:"
    assert tokenizer.apply_chat_template(USER, tokenize=False, add_generation_prompt=False) == "^Hi"
    assert tokenizer.apply_chat_template(USER) == [ord(letter) for letter in "^Hi:"]


def test_the_template_is_chosen_by_name_and_by_tools() -> None:
    tokenizer = letters(default="plain", tool_use="tools", rag="rag")
    assert tokenizer.apply_chat_template(USER, tokenize=False) == "plain"
    assert tokenizer.apply_chat_template(USER, tokenize=False, tools=[{}]) == "tools"
    assert tokenizer.apply_chat_template(USER, tokenize=False, chat_template="rag") == "rag"
    assert tokenizer.apply_chat_template(USER, tokenize=False, chat_template="{{ 1 + 1 }}") == "2"
    with pytest.raises(TokenizerError, match="no chat template 'default'; it has: rag"):
        letters(rag="rag").apply_chat_template(USER)


def test_the_error_for_a_missing_template_has_a_hint() -> None:
    with pytest.raises(TokenizerError, match=r"no chat template; give one as .*chat_template\.jinja"):
        letters().apply_chat_template(USER)


def test_white_space_matches_hugging_face() -> None:
    template = "{% for m in messages %}\n    {% if true %}\n{{ m.content }}\n    {% endif %}\n{% endfor %}\n"
    assert render_chat(template, USER * 2, {}) == "Hi\nHi\n"


def test_functions_and_filters() -> None:
    value = {"b": "<é>'&", "a": 1}
    assert render_chat("{{ v | tojson }}", USER, {"v": value}) == '{"b": "<é>\'&", "a": 1}'
    sorted_text = render_chat("{{ v | tojson(indent=1, sort_keys=true) }}", USER, {"v": value})
    assert sorted_text == '{\n "a": 1,\n "b": "<é>\'&"\n}'
    assert render_chat("{{ strftime_now('%Y') | length }}", USER, {}) == "4"
    loop = "{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}"
    assert render_chat(loop, USER, {}) == "1"
    assert render_chat("a{% generation %}b{{ 1 }}{% endgeneration %}c", USER, {}) == "ab1c"
    with pytest.raises(TokenizerError, match="roles must alternate"):
        render_chat("{{ raise_exception('roles must alternate') }}", USER, {})


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''['__class__'] }}",
        "{{ '' | attr('__class__') }}",
        "{{ '{0.__class__}'.format('') }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{{ messages[0].__setitem__('role', 'x') }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ lipsum.__globals__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__globals__['json'] }}",
        "{{ self.__init__.__globals__ }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ range(10000000000) | list }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ open('/etc/passwd') }}",
        "{{ 1 / 0 }}",
        "{{ messages[0].content.missing.missing }}",
        "{% if %}",
        "{{",
    ],
)
def test_a_hostile_or_broken_template_is_one_line(template: str) -> None:
    messages = [dict(USER[0])]
    with pytest.raises(TokenizerError) as caught:
        render_chat(template, messages, {})
    assert "\n" not in str(caught.value)
    assert "chat template failed" in str(caught.value)
    assert "root:" not in str(caught.value)
    assert messages == USER


@pytest.mark.parametrize("messages", [None, "Hi", {"role": "user"}, [], ["Hi"], [{"content": "Hi"}], [{"role": 1}]])
def test_messages_of_another_form(messages: Any) -> None:
    with pytest.raises(InputError, match="messages are a list of objects|no role"):
        render_chat("x", messages, {})
