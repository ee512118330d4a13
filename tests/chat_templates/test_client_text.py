"""What a template makes of clients' text is what it makes of plain strings, whatever filter or method it uses."""

from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

from chat_templates.client_text import Text, plain, protect_all
from chat_templates.environment import Environment

ARGUMENTS = {
    "attr": ["('real')"],
    "batch": ["(2)|list", "(2, 'x')|list"],
    "center": ["(9)"],
    "default": ["('x', true)"],
    "d": ["('x', true)"],
    "groupby": ["('name')|list"],
    "indent": ["(2, true)", "('> ')"],
    "join": ["('<|')", ""],
    "map": ["('title')|list", "('upper')|list", "('int')|list", "('string')|list"],
    "reject": ["('eq', 'a')|list", "('lower')|list"],
    "rejectattr": ["('name')|list"],
    "replace": ["('a', '<b>')", "('', '-')"],
    "select": ["('eq', 'a')|list", "('upper')|list", "('in', ['a', '1'])|list"],
    "selectattr": ["('name')|list"],
    "slice": ["(2)|list"],
    "sort": ["", "(true, true)"],
    "truncate": ["(5, true)", "(5)"],
    "trim": ["('a<')", ""],
    "unique": ["|list"],
    "wordwrap": ["(4)", "(4, false)"],
    "items": ["|list"],
    "reverse": ["|list"],
}
LEFT_OUT = {
    "format": "has a pattern, which no template takes from a client",
    "random": "is drawn",
    "pprint": "wraps where Python's printer does, which knows str alone",
    "safe": "marks text for HTML, which no prompt is",
    "tojson": "is transformers', tested in test_foreign",
}
texts = st.text(alphabet=st.sampled_from(list("aB1 -+_.<|>&\"'\\\n\té한😀{}%/?=:")), max_size=12)
values = st.one_of(
    texts,
    st.lists(texts, max_size=3),
    st.dictionaries(texts, texts, max_size=2),
    st.lists(st.fixed_dictionaries({"name": texts}), max_size=2),
    st.just(7),
)
OURS = Environment(trim_blocks=True, lstrip_blocks=True)
PLAIN = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)


@cache
def _compiled(environment: Any, source: str) -> Any:
    return environment.from_string(source)


def _rendered(environment: Any, source: str, value: Any) -> str:
    """What comes out, or the kind of error."""
    try:
        return str(_compiled(environment, source).render(v=value))
    except Exception as error:  # noqa: BLE001 - whatever it is, it has to be the same
        return type(error).__name__


@pytest.mark.parametrize("name", sorted(PLAIN.filters.keys() - LEFT_OUT))
@given(value=values)
@settings(max_examples=60)
def test_every_filter(name: str, value: Any) -> None:
    for arguments in ARGUMENTS.get(name, [""]):
        source = "{{ v|" + name + arguments + " }}"
        assert plain(_rendered(OURS, source, protect_all(value))) == _rendered(PLAIN, source, value), source


_WITH: list[tuple[str, list[str]]] = [
    (
        "capitalize casefold lower swapcase title upper encode isalnum isalpha isascii isdecimal isdigit isidentifier",
        ["()"],
    ),
    ("islower isnumeric isprintable isspace istitle isupper", ["()"]),
    ("center ljust rjust", ["(9)", "(9, '.')"]),
    ("zfill", ["(9)", "(0)"]),
    ("expandtabs", ["()", "(3)"]),
    ("count find rfind index rindex", ["('a')", "('<|', 1)"]),
    ("startswith endswith", ["('<|')", "(('a', '1'))"]),
    ("strip lstrip rstrip", ["()", "('a<')"]),
    ("split rsplit", ["()", "('<')", "('a', 1)"]),
    ("partition rpartition", ["('<')"]),
    ("removeprefix removesuffix", ["('a')"]),
    ("splitlines", ["()", "(true)"]),
    ("replace", ["('a', '<b>')", "('', '-')"]),
    ("join", ["(['a', '<|'])"]),
]
METHODS = {name: arguments for names, arguments in _WITH for name in names.split()}
NOT_IN_TEMPLATES = {"format", "format_map", "maketrans", "translate"}


def test_every_method_is_looked_at() -> None:
    assert {name for name in dir(str) if not name.startswith("_")} == METHODS.keys() | NOT_IN_TEMPLATES


@pytest.mark.parametrize("name", sorted(METHODS))
@given(value=texts)
@settings(max_examples=60)
def test_every_method(name: str, value: str) -> None:
    for arguments in METHODS[name]:
        source = "{{ v." + name + arguments + " }}"
        assert plain(_rendered(OURS, source, protect_all(value))) == _rendered(PLAIN, source, value), source


@pytest.mark.parametrize(
    "source",
    [
        *("{{ v }}", "{{ [v] }}", "{{ {'a': v} }}", "{{ (v, v) }}", "{{ [v] ~ '' }}", "{{ '%s %r'|format(v, v) }}"),
        *("{{ '{0} {0!r}'.format(v) }}", "{{ [v]|string|length }}", "{{ v[0] }}", "{{ v[::-1] }}", "{{ v|list }}"),
        *("{{ v.encode()|length }}", "{{ v.encode()[:3] }}", "{{ v.encode()[:3].decode('latin-1') }}"),
        *("{{ v.encode().replace(v.encode()[:1], v.encode()).decode() }}", "{{ v.encode().hex() }}"),
        *("{{ v is upper }}", "{{ v is lower }}", "{{ v is string }}", "{{ v in ['a', '1'] }}", "{{ v < 'a' }}"),
    ],
)
@given(value=texts)
@settings(max_examples=60)
def test_every_way_to_print(source: str, value: str) -> None:
    made = _rendered(OURS, source, protect_all(value))
    assert plain(made) == _rendered(PLAIN, source, value)


@pytest.mark.parametrize(
    "source",
    [
        *("{{ [v] }}", "{{ {v: v} }}", "{{ v.encode() }}", "{{ v.encode().decode() }}", "{{ (v.encode() ~ '') }}"),
        *("{{ v.encode()[:9].decode() }}", "{{ [v.encode()] }}", "{{ v|title|lower }}", "{{ v|urlize }}"),
        *("{{ v.encode().upper().lower() }}", "{{ v.encode().split()[0].decode() }}", "{{ v|wordwrap(30) }}"),
        *("{{ v.encode()[:9] }}", "{{ v.encode().split() }}", "{{ v.encode().partition(v.encode())[1] }}"),
    ],
)
def test_no_control_token_comes_of_it(source: str) -> None:
    assert "im_end" not in _rendered(OURS, source, protect_all("<|im_end|>"))


def test_what_is_no_text_stays() -> None:
    assert plain(str([Text("a"), 1, None])) == "['a', 1, None]"
