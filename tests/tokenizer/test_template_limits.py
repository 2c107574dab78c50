"""Chat templates cannot run for ever, fill the memory or leave the sandbox; real ones notice no limit."""

from __future__ import annotations

import time

import pytest

from inference.errors import TokenizerError
from inference.tokenizer import template_sandbox
from inference.tokenizer.chat import render_chat

USER = [{"role": "user", "content": "Hi"}]
GROWING = (
    "{{ 'x' * 10**9 }}",
    "{{ 10**9 * 'x' }}",
    "{{ [0] * 10**9 }}",
    "{{ 9 ** 99999999 }}",
    "{{ 2 ** 65000 * 2 ** 65000 }}",
    "{{ 'x' | center(1000000000) }}",
    "{{ 'x'.ljust(10**9) }}",
    "{{ 'x'.zfill(1000000000) }}",
    "{{ '%999999999d' % 1 }}",
    "{{ '%*d' % (999999999, 1) }}",
    "{{ '%999999999d' | format(1) }}",
    "{{ '{:999999999}'.format(1) }}",
    "{{ '{:{}}'.format(1, 999999999) }}",
    "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
    "{{ ('a' * 100000).join(['x'] * 100000) }}",
    "{{ (['x'] * 100000) | join('a' * 100000) }}",
    "{{ ('\t' * 100000).expandtabs(99999) }}",
    "{{ ('a ' * 100000) | wordwrap(1, wrapstring='b' * 100000) }}",
    "{{ ('a\n' * 100000) | indent(99999) }}",
    "{{ [1] | batch(10**9, 'x') | list }}",
    "{{ [[0] * 100000] * 1000 }}",
    "{{ ([[0] * 100000] * 100) | sum(start=[]) }}",
    "{{ lipsum(100000) }}",
    "{{ range(10**9) | list }}",
    "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x | tojson }}",
    "{% set n = namespace(x=[1], y=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}"
    "{% set n.y = [n.y, n.y] %}{% endfor %}{{ n.x == n.y }}",
    "{% set n = namespace(l=[]) %}{% set x = 'x' * 9999999 %}{% for i in range(9999) %}"
    "{% set n.l = n.l + [x[i:]] %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}",
    "{% set x %}{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}{% endset %}",
    "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "{{ 'x' }}" * 200_000,
)


@pytest.mark.parametrize("template", GROWING, ids=range(len(GROWING)))
def test_a_template_that_grows_without_bound_is_rejected(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_sandbox, "CPU_SECONDS", 0.3)
    begin = time.thread_time()
    with pytest.raises(TokenizerError, match="the chat template failed"):
        render_chat(template, USER, {})
    assert time.thread_time() - begin < 2.5


ESCAPES = (
    "{{ ''.__class__ }}",
    "{{ ''['__class__'] }}",
    "{{ '' | attr('__class__') }}",
    "{{ '{0.__class__}'.format('') }}",
    "{{ ['{0.__class__}'] | map('format', 1) | list }}",
    "{{ messages.append(1) }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ (messages | map(attribute='__class__') | list)[0].__mro__ }}",
    "{{ ('class' * 100).encode() }}",
    "{{ ['__class__'] | map('watched') | map('attr', 'x') | first._items }}",
)


@pytest.mark.parametrize("template", ESCAPES)
def test_templates_cannot_escape_the_sandbox(template: str) -> None:
    try:
        text = render_chat(template, USER, {})
    except TokenizerError:
        return
    assert "class" not in text.replace("__class__", "") and "_items" not in text


ALLOWED = {
    "{% for m in messages %}{{ loop.last }}{{ loop.length }}{{ m['content'] }}{% endfor %}": "True1Hi",
    "{% for k, v in {'a': 1}.items() %}{{ k ~ '=' ~ v }}{% endfor %}": "a=1",
    "{% for x in [3, 1, 2] | sort if x > 1 %}{{ x }}{% else %}none{% endfor %}": "23",
    "{% for x in nothing %}{% else %}none{% endfor %}": "none",
    "{{ messages[0].content[1:] ~ 'x' * 3 ~ '%03d' % 7 ~ '{:>4}'.format(1) }}": "ixxx007   1",
    "{{ [1, 2] + [3] == [1, 2, 3] and 'user' in messages[0].values() }}": "True",
    "{{ messages | map(attribute='role') | join(', ') | upper | replace('U', 'u') }}": "uSER",
    "{{ messages[::-1] | tojson }}": '[{"role": "user", "content": "Hi"}]',
    "{{ 'a,b'.split(',')[-1].strip().title() }}{{ none is none }}{{ 7 // 2 }}{{ 2 ** 10 }}": "BTrue31024",
    "{% set ns = namespace(n=0) %}{% for i in range(999) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}": "498501",
    "{% macro turn(role, text='-') %}<{{ role }}>{{ text }}{% endmacro %}{{ turn('user') }}": "<user>-",
}


@pytest.mark.parametrize("template", ALLOWED)
def test_allowed_templates_are_rendered(template: str) -> None:
    assert render_chat(template, USER, {}) == ALLOWED[template]


def test_a_long_chat_is_far_from_the_limits() -> None:
    template = "{% for m in messages %}{{ '<' + m.role + '>' + (m.content | trim) + '\n' }}{% endfor %}"
    messages = [{"role": "user", "content": "word " * 200}] * 5000
    begin = time.thread_time()
    assert len(render_chat(template, messages, {})) == 5000 * (7 + 999)
    assert time.thread_time() - begin < 2.5
