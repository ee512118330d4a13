"""Grammars of tool calls let through what models write, and what they let through is read back as it was meant."""

import json
import random
from functools import cache
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from llguidance import LLMatcher, LLTokenizer

from chat_templates.tool_forms.form import CallForm, NamedJsonCalls, TaggedCalls, tags_of
from chat_templates.tool_forms.known import FORMS
from chat_templates.tool_forms.values import as_json
from server.core.call_rules import CallRules
from server.core.grammars import of_schema
from tests.chat_templates.tool_forms.forms import ONE_A_SECTION, TOOLS, Call, opening, written
from tests.chat_templates.tool_forms.test_reader import calls, read

BYTES = LLTokenizer("byte")
STRICT = {
    "book": {
        "type": "object",
        "properties": {
            "title": {"type": "string"},
            "pages": {"type": "integer", "minimum": 1, "maximum": 2000},
            "kind": {"enum": ["novel", "poems"]},
            "new": {"type": "boolean"},
            "who": {"$ref": "#/$defs/person"},
        },
        "required": ["title", "kind"],
        "$defs": {"person": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}},
    },
    "stop": {"type": "object", "properties": {}},
}


BITS = [[bit for bit in range(8) if byte >> bit & 1] for byte in range(256)]
"""Which bits of a byte are set."""


def grammar(form: CallForm, tools: Any, *, several: bool) -> str:
    rules = CallRules(form, list(tools.items()), {}, of_schema).text(several=several)
    return f"start: calls\n{rules}"


@cache
def _at_start(rules: str) -> LLMatcher:
    matcher = LLMatcher(BYTES, rules, log_level=0)
    assert not matcher.get_error(), matcher.get_error()
    return matcher


def accepted(text: str, rules: str) -> tuple[str, bool]:
    """What is left of the text where the grammar stops taking it, and whether it may end there."""
    matcher = _at_start(rules).deep_copy()
    data = list(text.encode())
    taken = matcher.try_consume_tokens(data)
    return bytes(data[taken:]).decode(errors="replace"), matcher.is_accepting()


def in_order(wanted: list[Call]) -> list[Call]:
    """Arguments as the schema lists them: grammars know no other order."""
    return [(name, {k: args[k] for k in TOOLS[name]["properties"] if k in args}) for name, args in wanted]


@pytest.mark.parametrize("name", FORMS)
@given(wanted=calls)
@settings(max_examples=60)
def test_what_models_write_is_let_through(name: str, wanted: list[Call]) -> None:
    form = FORMS[name]
    wanted = in_order(wanted[:1] if name in ONE_A_SECTION else wanted)
    text = opening(form) + written(form, wanted)
    assert accepted(text, _of_tools(name)) == ("", True)


@cache
def _of_tools(name: str) -> str:
    return grammar(FORMS[name], TOOLS, several=True)


def walked(rules: str, tags: tuple[str, ...], seed: int) -> str | None:
    """A text that the grammar lets through, drawn at random; None where it does not end."""
    draw = random.Random(seed)
    matcher = _at_start(rules).deep_copy()
    text = bytearray()
    for step in range(1500):
        if matcher.is_accepting() and (matcher.is_stopped() or draw.random() < 0.5 or step > 700):
            return text.decode()
        mask = matcher.compute_bitmask()
        allowed = [8 * place + bit for place, bits in enumerate(mask[:32]) for bit in BITS[bits]]
        wished = _wished(bytes(text), tags) if draw.random() < 0.9 else set()
        ending = set(b'"}])1,') if step > 100 else set()
        choice = sorted(wished.intersection(allowed)) or sorted(ending.intersection(allowed))
        byte = draw.choice(choice or [byte for byte in allowed if byte < 128] or allowed)
        assert matcher.consume_tokens([byte])
        text.append(byte)
    return None


def _wished(text: bytes, tags: tuple[str, ...]) -> set[int]:
    """The bytes that go on with a tag that the text has begun."""
    encoded = [tag.encode() for tag in tags]
    return {tag[size] for tag in encoded for size in range(1, len(tag)) if text.endswith(tag[:size])}


@pytest.mark.parametrize("name", FORMS)
def test_what_is_let_through_is_read_back(name: str) -> None:
    form = FORMS[name]
    rules = [grammar(form, STRICT, several=several) for several in (False, True)]
    texts = [walked(rules[seed % 2], tags_of(form), seed) for seed in range(30)]
    ended = [text for text in texts if text is not None]
    assert len(ended) > 10
    for text in ended:
        for called, arguments in _read_all(form, text):
            jsonschema.validate(arguments, STRICT[called])


def _read_all(form: CallForm, text: str) -> list[Call]:
    """The calls of all sections; every one of them is whole, and there is nothing else."""
    everything: list[Call] = []
    while text := text.lstrip():
        assert text.startswith(opening(form)), text
        found, complete, reader = read(form, list(text.removeprefix(opening(form))), STRICT)
        assert found, text
        assert complete == [True] * len(complete), text
        everything += found
        text = reader.rest
    return everything


@pytest.mark.parametrize("name", [name for name, form in FORMS.items() if tags_of(form)])
def test_tags_that_are_tokens(name: str) -> None:
    form = FORMS[name]
    tags = [tag for tag in tags_of(form) if tag.startswith(("<", "[", "]"))]
    tokens = {tag: 100 + index for index, tag in enumerate(tags)}
    for is_free in (False, True):
        rules = CallRules(form, list(STRICT.items()), tokens, of_schema).text(several=True, is_free=is_free)
        assert "<[100]>" in rules
        assert not LLMatcher(BYTES, f"start: calls\n{rules}", log_level=0).get_error()


@pytest.mark.parametrize("name", [name for name, form in FORMS.items() if form.open])
def test_text_around_calls(name: str) -> None:
    """Where calls are free, tags that are text; nothing but a call comes after an opening tag."""
    form = FORMS[name]
    call = opening(form) + written(form, [("weather", {"city": "Rome"})])
    rules = CallRules(form, list(TOOLS.items()), {}, of_schema).text(several=True, is_free=True)
    texts = ["So: 1 < 2.", f"So:\n{call}", f"{call}\n{call}", f"{call}\nDone." if form.close else call]
    if isinstance(form, NamedJsonCalls) and form.answer_open:  # every message has a header, and a call ends the turn
        texts = [f"{form.answer_open}So: 1 < 2.", call]
    for text in texts:
        assert accepted(text, f"start: calls\n{rules}") == ("", True), text
    assert accepted(f"So: {opening(form)} no", f"start: calls\n{rules}")[1] is False


def test_arguments_that_are_not_listed() -> None:
    form = FORMS["qwen3-coder"]
    assert isinstance(form, TaggedCalls)
    text = opening(form) + written(form, [("any", {"a": "b", "c": "</d>"})])
    tools = {"any": {"type": "object", "additionalProperties": True}}
    assert accepted(text, grammar(form, tools, several=False)) == ("", True)
    assert accepted(text, grammar(form, {"any": {"type": "object"}}, several=False))[1] is False


LISTED: dict[str, Any] = {
    "type": "object",
    "properties": {
        "days": {"enum": [1, 2, 3]},
        "mixed": {"enum": ["a", 7, True, None, [1, "b"], {"c": "d"}]},
        "quotes": {"const": 'it\'s "5\\" é\n'},
        "either": {"anyOf": [{"const": 5}, {"type": "null"}]},
        "typed": {"type": "integer", "enum": [4, "five"]},
        "texts": {"oneOf": [{"const": "x"}, {"enum": ["y", "z"]}]},
    },
    "required": ["days", "mixed", "quotes", "either", "typed", "texts"],
}


@pytest.mark.parametrize("name", FORMS)
def test_values_that_a_schema_lists_are_drawn_and_no_others(name: str) -> None:
    form = FORMS[name]
    rules = grammar(form, {"f": LISTED}, several=False)
    for seed in range(12):
        text = walked(rules, tags_of(form), seed)
        assert text is not None
        found, complete, _ = read(form, [text.removeprefix(opening(form))], {"f": LISTED})
        assert complete == [True]
        jsonschema.validate(found[0][1], LISTED)


def test_python_has_no_numbers_that_json_has_not() -> None:
    """It reads what is too large as infinite, and no more than so many digits."""
    form, many = FORMS["olmo3"], "1" * 5000
    for kind, numbers in (("number", {"-1.5e30": True, "59e10739424963811": False, many: False}),
                          ("integer", {"-12": True, "1.5": False, many: False})):  # fmt: skip
        tools = {"f": {"type": "object", "properties": {"x": {"type": kind}}, "required": ["x"]}}
        for number, is_one in numbers.items():
            text = f"{opening(form)}f(x={number}){form.close}"
            assert accepted(text, grammar(form, tools, several=False))[1] is is_one


def test_json_has_numbers_that_python_has_not() -> None:
    """The grammars of the other forms take them, and they are told as they were written."""
    for number in ("59e10739424963811", "1" * 5000):
        assert as_json(number, frozenset({"number"})) == number
        assert as_json(number, frozenset({"boolean"})) == json.dumps(number)
    assert as_json("1e999", frozenset({"integer"})) == '"1e999"'


def test_line_breaks_between_tags_that_some_models_leave_out() -> None:
    """GLM-4.7 does; GLM-4.5 and 4.6 write them."""
    form = FORMS["glm"]
    wanted: Call = ("weather", {"city": "Rome", "days": 3})
    text = opening(form) + written(form, [wanted])
    tight = text.replace("\n", "")
    for whole in (f"{text}\n{text}", f"{tight}{tight}"):
        assert accepted(whole, grammar(form, TOOLS, several=True)) == ("", True)
        assert read(form, [whole.removeprefix(opening(form))])[0] == [wanted]
    tokens = {tag: 100 + index for index, tag in enumerate(("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>"))}
    rules = CallRules(form, list(TOOLS.items()), tokens, of_schema).text(several=True)
    matcher = LLMatcher(BYTES, f"start: calls\n{rules}", log_level=0)
    assert matcher.consume_tokens([100, *b"weather", 102, *b"city", 103, *b"<arg_value>Rome</arg_value>", 101])
