"""Grammars of the answer: what fits them, which part of a turn they bind, and refusals of what no grammar takes."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from chat_templates.format import ChatFormat
from server.core import grammars
from tests.fake_engine import FakeEngine
from tests.server.conftest import Client, always, body
from tests.server.test_http import error_of
from tests.server.test_tools import CLOCK

CHAT = "/v1/chat/completions"
OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
BYTES = LLTokenizer("byte")


def fits(grammar: str, text: str) -> bool:
    """Whether `text` is all that the grammar asks for."""
    matcher = LLMatcher(BYTES, grammar)
    assert not matcher.is_error(), matcher.get_error()
    ids = BYTES.tokenize_str(text)
    return matcher.validate_tokens(ids) == len(ids) and matcher.consume_tokens(ids) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("rule", "yes", "no"),
    [
        (grammars.of_schema(OBJECT), '{"a": 12}', '{"a":12}'),
        (grammars.of_schema({"type": "object"}), '{"x": [1, {}]}', "[]"),
        (grammars.of_schema({"const": "é ::= start:"}), '"é ::= start:"', '"e"'),
        (grammars.of_regex("[a-c]+/\\d"), "abc/7", "abc7"),
        (grammars.of_choices(['say "hi"', "b\n"]), 'say "hi"', "b"),
    ],
)
def test_what_fits(rule: str, yes: str, no: str) -> None:
    grammar = f"start: answer\nanswer: {rule}"
    assert fits(grammar, yes)
    assert not fits(grammar, no)


@given(choices=st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=4))
def test_every_choice_fits(choices: list[str]) -> None:
    choices = [choice for choice in choices if choice.isprintable()] or ["x"]
    grammar = f"start: answer\nanswer: {grammars.of_choices(choices)}"
    assert all(fits(grammar, choice) for choice in choices)


def test_notations_of_whole_grammars() -> None:
    assert fits(grammars.of_lark('root ::= "(" root ")" | "x"'), "((x))")
    assert fits(grammars.of_lark('start: "a" b\nb: /[0-9]+/'), "a12")


FORMATS = [
    {"response_format": {"type": "json_object"}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": OBJECT, "strict": True}}},
    {"structured_outputs": {"json": OBJECT}},
    {"structured_outputs": {"json": '{"type": "array"}'}},
    {"structured_outputs": {"json_object": True}},
    {"structured_outputs": {"regex": "a+"}},
    {"structured_outputs": {"choice": ["yes", "no"]}},
    {"structured_outputs": {"grammar": 'root ::= "a"'}},
]


@pytest.fixture
def engine(fmt: ChatFormat) -> FakeEngine:
    ids = [*fmt.encode_text("so"), *fmt.close_thinking(), *fmt.encode_text("{}"), fmt.end_of_turn_id]
    answer = [*fmt.encode_text("{}"), fmt.end_of_turn_id]
    return FakeEngine(
        lambda prompt: iter(ids if fmt.is_thinking_open(prompt) else answer), (fmt.end_of_turn_id,), chunks=(2,)
    )


@pytest.mark.parametrize("fields", FORMATS)
async def test_the_grammar_binds_the_answer_only(
    client: Client, engine: FakeEngine, fmt: ChatFormat, fields: dict[str, Any]
) -> None:
    async with client(engine) as http:
        direct = (await http.post(CHAT, json=body(**fields))).json()
        reasoned = (await http.post(CHAT, json=body(reasoning_mode="reasoning", max_tokens=99, **fields))).json()
    assert direct["choices"][0]["message"]["content"] == reasoned["choices"][0]["message"]["content"] == "{}"
    message = reasoned["choices"][0]["message"]
    assert message["reasoning"] == "so"
    alone, thinking, answer = engine.seen
    assert thinking.sampling.grammar is None
    assert alone.sampling.grammar == answer.sampling.grammar is not None
    assert answer.prompt_ids[len(thinking.prompt_ids) :] == [*fmt.encode_text("so"), *fmt.close_thinking()]
    said = len(fmt.close_thinking())
    assert reasoned["usage"]["completion_tokens"] == len(fmt.encode_text("so")) + said + len(fmt.encode_text("{}")) + 1
    assert answer.sampling.max_tokens == 99 - len(fmt.encode_text("so")) - said


async def test_tools_and_a_format_are_one_or_the_other(client: Client, engine: FakeEngine) -> None:
    async with client(engine) as http:
        await http.post(CHAT, json=body(tools=[CLOCK], response_format={"type": "json_object"}))
    grammar = engine.seen[0].sampling.grammar
    assert grammar is not None
    assert grammar.startswith("start: answer | calls\n")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": 3}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": []}}},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}},
            "response_format.json_schema.schema",
        ),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "json": {}}}, "structured_outputs"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"choice": [1]}}, "structured_outputs.choice[0]"),
        ({"structured_outputs": {"json_object": False}}, "structured_outputs.json_object"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": "3"}}, "structured_outputs.json"),
        ({"structured_outputs": {"regex": "a("}}, "structured_outputs.regex"),
        ({"structured_outputs": {"regex": "(?<=a)b"}}, "structured_outputs.regex"),
        ({"structured_outputs": {"grammar": "::="}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"grammar": "root ::= a a"}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"grammar": "root ::= |[(^\\"}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"grammar": "root ::= " + "(" * 5000}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"grammar": "root ::= " + "a " * 10000}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"grammar": "start: <[1000]>"}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"json": {"not": {}}}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": {"$ref": "http://x.invalid/s"}}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": {"type": "string"}}, "min_tokens": 3}, "min_tokens"),
        (
            {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
            "structured_outputs",
        ),
    ],
)
async def test_a_bad_field_is_named(client: Client, engine: FakeEngine, fields: dict[str, Any], param: str) -> None:
    async with client(engine) as http:
        response = await http.post(CHAT, json=body(**fields))
    error = error_of(response)
    assert (response.status_code, error["param"]) == (400, param)
    assert "\n" not in error["message"]
    assert not engine.seen


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": {"type": "integer"}, "minItems": 10**5, "maxItems": 2 * 10**5},
        {"allOf": [{"anyOf": [{"properties": {f"p{n}": {}}}, {"properties": {f"q{n}": {}}}]} for n in range(16)]},
        {"enum": ["x" * 300_000]},
        nested(5000),
        nested(1000),
    ],
)
async def test_a_schema_that_is_too_much_is_refused(client: Client, engine: FakeEngine, schema: dict[str, Any]) -> None:
    started = time.process_time()
    async with client(engine) as http:
        content = b'{"messages": [{"role": "user", "content": "a"}], "structured_outputs": {"json": %b}}'
        text = _dumps(schema).encode()
        response = await http.post(CHAT, content=content % text)
    assert response.status_code == 400
    error_of(response)
    assert time.process_time() - started < 5  # of computing, whatever else the machine does; it is a tenth of that


def _dumps(schema: dict[str, Any]) -> str:
    depth, inner = 0, schema
    while isinstance(inner.get("items"), dict) and inner["type"] == "array" and "minItems" not in inner:
        depth, inner = depth + 1, inner["items"]
    return '{"type": "array", "items": ' * depth + json.dumps(inner) + "}" * depth


def test_the_check_says_why() -> None:
    with pytest.raises(ValueError, match=r"no grammar takes this: .*not"):
        grammars.check(f"start: {grammars.of_schema({'not': {}})}")
    for rule, why in (
        (grammars.of_schema({"type": "string", "pattern": "["}), "unclosed character class"),
        (grammars.of_schema({"type": "string", "pattern": "a{2,1}"}), "the start must be <= the end"),
        ("/[/", "unclosed character class"),
    ):
        with pytest.raises(ValueError, match=rf"no grammar takes this: .*regex parse error: .*{why}$"):
            grammars.check(f"start: {rule}")


async def test_a_free_answer_has_no_grammar(client: Client, fmt: ChatFormat) -> None:
    engine = FakeEngine(always([fmt.end_of_turn_id]), (fmt.end_of_turn_id,))
    async with client(engine) as http:
        await http.post(CHAT, json=body(response_format={"type": "text"}, tool_choice="auto"))
    assert engine.seen[0].sampling.grammar is None
