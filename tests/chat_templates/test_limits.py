"""A checkpoint's template is untrusted code: what costs too much or breaks is an error of the template's, soon."""

import time

import pytest

from chat_templates import limits
from chat_templates.checkpoint import CheckpointTemplate, TemplateFiles
from chat_templates.errors import FormatError
from chat_templates.format import ChatFormat
from chat_templates.settings import DIRECT, FormatSettings
from chat_templates.tokens import Vocabulary
from server.settings import EMBEDDED_MODEL

USER = [{"role": "user", "content": "Hi"}]
TOKENIZER = (EMBEDDED_MODEL / "tokenizer.json").read_text()
SLOW = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) if b < 0 %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{{ range(99999) | sum }}{% endfor %}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "{% for a in [1, 2] recursive %}{% if loop.depth < 60 %}{{ loop([1, 2]) }}{% endif %}{% endfor %}",
]
LARGE = [
    "{{ 'a' * 999999999999 }}",
    "{{ 999999999999 * ['a'] }}",
    "{{ 9 ** 9 ** 9 ** 99999 }}",
    "{% set n = namespace(x=9) %}{% for a in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "{% set n = namespace(x='a') %}{% for a in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{% set n = namespace(x='a') %}{% for a in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "{% set n = namespace(x='aa') %}{% for a in range(99) %}{% set n.x = n.x | replace('a', 'aa') %}{% endfor %}",
    "{{ 'a' | center(999999999999) }}",
    "{{ 'a'.ljust(999999999999) }}",
    "{{ '%999999999d' % 1 }}",
    "{{ '%*d' % (999999999, 1) }}",
    "{{ '%999999999d' | format(1) }}",
    "{{ '{:999999999}'.format(1) }}",
    "{{ '{:{}}'.format(1, 33000000) }}",
    "{{ '\\ud800' }}",
    "{% for a in range(99999) %}{{ 'a' * 10000 }}{% endfor %}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ raise_exception('x' * 100000) }}",
]


def format_of(source: str) -> ChatFormat:
    template = CheckpointTemplate(TemplateFiles(source, None, {"eos_token": "[|endofturn|]"}), FormatSettings())
    return ChatFormat(Vocabulary(TOKENIZER, required=(), template=source), template)


@pytest.mark.parametrize("source", SLOW)
def test_what_takes_too_long_ends(source: str) -> None:
    fmt = format_of(source + "{{ messages[0].content }}")
    started = time.thread_time()
    with limits.at_most(0.2), pytest.raises(limits.TooSlowError, match=r"more than 0\.2 s") as caught:
        fmt.render(USER, DIRECT)
    assert caught.value.param == "messages"
    assert time.thread_time() - started < 1


@pytest.mark.parametrize("source", LARGE)
def test_what_grows_too_large_is_refused(source: str) -> None:
    fmt = format_of(source + "{{ messages[0].content }}")
    with pytest.raises(FormatError) as caught:
        fmt.render(USER, DIRECT)
    assert caught.value.param == "messages"
    assert len(caught.value.message) < 1000


def test_half_a_character_does_no_harm() -> None:
    with pytest.raises(FormatError, match="template") as caught:
        format_of(r"{{ messages and raise_exception('\udfff') }}").render(USER, DIRECT)
    assert caught.value.message.encode().endswith(b"?")
    assert format_of(r"{{ messages and '\udfff' }}").render(USER, DIRECT)


def test_the_limit_of_one_rendering_is_not_that_of_the_next() -> None:
    fmt = format_of(SLOW[0] + "{{ messages[0].content }}")
    with limits.at_most(0.01), pytest.raises(limits.TooSlowError):
        fmt.render(USER, DIRECT)
    quick = format_of("{% for m in messages %}{{ m.content }}{{ loop.length }}{% endfor %}")
    assert quick.decode(quick.render(USER * 1000, DIRECT)).startswith("Hi1000")
