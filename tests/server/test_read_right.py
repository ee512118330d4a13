"""Inputs that such servers hang on or misread, each reduced from a public report: the right outcome."""

import json
from typing import Any

import pytest

from chat_templates.format import ChatFormat
from tests.fake_engine import FakeEngine
from tests.server.conftest import HELLO, Client, always, body

CHAT = "/v1/chat/completions"
NO_FORCING = '%llguidance {"no_forcing": true}\n'
WEATHER = {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False
}  # fmt: skip


@pytest.fixture
def engine(fmt: ChatFormat) -> FakeEngine:
    return FakeEngine(always([fmt.end_of_turn_id]), (fmt.end_of_turn_id,))


def tool(name: str, parameters: Any = None, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


async def grammar_of(client: Client, engine: FakeEngine, **fields: Any) -> str:
    async with client(engine) as http:
        response = await http.post(CHAT, json=body(**fields))
    assert response.status_code == 200, response.text
    grammar = engine.seen[-1].sampling.grammar
    assert grammar is not None
    return grammar


async def refused(client: Client, engine: FakeEngine, **fields: Any) -> dict[str, Any]:
    async with client(engine) as http:
        response = await http.post(CHAT, json=body(**fields))
    assert response.status_code == 400, response.text
    assert not engine.seen
    return dict(response.json()["error"])


@pytest.mark.parametrize(
    ("schema", "word"),
    [
        ({"type": "array", "items": {"type": "boolean"}, "maxItems": 1_000_000_000, "minItems": 1}, "maxItems"),
        ({"type": "array", "items": {"type": "boolean"}, "minItems": 10**7}, "minItems"),
        ({"type": "integer", "multipleOf": 1_000_003}, "multipleOf"),
        ({"$defs": {"N": {"type": "object", "properties": {"n": {"$ref": "#/$defs/N"}}, "required": ["n"]}},
          "$ref": "#/$defs/N"}, "requires itself"),
        ({"type": "object", "minProperties": 2}, "minProperties"),
        ({"type": "object", "properties": {"p": {"type": "string", "pattern": "^(?=a)b$"}}}, "properties.p.pattern"),
        ({"type": "object", "properties": {"p": {"type": "string", "pattern": "^(?=a)b$"}}}, "(?= at character 1"),
    ],
)  # fmt: skip
async def test_a_schema_that_cannot_be_kept_is_named(
    client: Client, engine: FakeEngine, schema: dict[str, Any], word: str
) -> None:
    for fields, param in (
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}},
         "response_format.json_schema.schema"),
        ({"tools": [tool("f", {"type": "object", "properties": {"x": schema}})], "tool_choice": "required"},
         "tools[0].function.parameters"),
    ):  # fmt: skip
        if "tools" in fields and "$ref" in schema:
            continue  # references are to the root
        error = await refused(client, engine, **fields)
        assert error["param"] == param
        assert word in error["message"]


async def test_a_pattern_that_looks_ahead_says_what_and_where(client: Client, engine: FakeEngine) -> None:
    error = await refused(client, engine, structured_outputs={"regex": "ab(?!c)d"})
    assert error["param"] == "structured_outputs.regex"
    assert "look-around, here (?! at character 2" in error["message"]


async def test_the_spelling_of_a_control_token_is_text_in_a_grammar(
    client: Client, engine: FakeEngine, fmt: ChatFormat
) -> None:
    """The library would tokenize text that can come in one way only, with control tokens where it spells them."""
    for spelling in fmt.vocabulary.control:
        text = f"a{spelling}b"
        schema = {"type": "object", "properties": {"x": {"const": text}}, "required": ["x"]}
        for fields in (
            {"structured_outputs": {"choice": [text]}},
            {"structured_outputs": {"json": {"const": text}}},
            {"structured_outputs": {"regex": "a[<\\[].*"}},
            {"structured_outputs": {"grammar": f"start: {json.dumps(text)}"}},
            {"tools": [tool("f", schema)], "tool_choice": "required"},
        ):
            assert (await grammar_of(client, engine, **fields)).startswith(NO_FORCING)


async def test_other_grammars_keep_the_tokens_that_the_library_forces(client: Client, engine: FakeEngine) -> None:
    for fields in ({"structured_outputs": {"choice": ["a<b"]}}, {"response_format": {"type": "json_object"}}):
        assert (await grammar_of(client, engine, **fields)).startswith("start: answer\n")


@pytest.mark.parametrize("function", [{}, {"parameters": None}, {"parameters": {}}])
async def test_a_tool_without_parameters_is_called_with_none(
    client: Client, engine: FakeEngine, function: dict[str, Any]
) -> None:
    tools = [{"type": "function", "function": {"name": "now", **function}}]
    grammar = await grammar_of(client, engine, tools=tools, tool_choice="required")
    (rule,) = [line for line in grammar.splitlines() if line.startswith("arguments_0:")]
    schema = json.loads(rule.partition("%json ")[2])
    assert (schema["properties"], schema["additionalProperties"]) == ({}, False)


async def test_strict_tools_bind_calls_and_not_the_text_around_them(client: Client, engine: FakeEngine) -> None:
    tools = [tool("weather", WEATHER, strict=True), tool("note", {"type": "object", "properties": {"a": {}}})]
    grammar = await grammar_of(client, engine, tools=tools)
    assert grammar.startswith("start: calls\ncalls: TEXT? (call TEXT?)*\nTEXT: /(.|\\n)*/\n")
    assert '"city"' in grammar
    assert '"a"' not in grammar  # its schema is not strict
    one = await grammar_of(client, engine, tools=tools, parallel_tool_calls=False)
    assert one.startswith("start: calls\ncalls: TEXT? call?\n")
    async with client(engine) as http:
        await http.post(CHAT, json=body(tools=[tool("weather", WEATHER, strict=False)]))
        await http.post(CHAT, json=body(tools=tools, tool_choice="none"))
    assert [request.sampling.grammar for request in engine.seen[-2:]] == [None, None]


async def test_a_call_cut_off_in_its_head_is_not_the_answer(client: Client, fmt: ChatFormat) -> None:
    for head in ("", "{", '{"name": "calculator", "', '{"name": "f", "arguments": '):
        ids = [*fmt.encode_text("Let me see.\n"), fmt.tool_call_id, *fmt.encode_text(head)]
        engine = FakeEngine(always([*ids, fmt.end_of_turn_id]), (fmt.end_of_turn_id,))
        async with client(engine) as http:
            asked = body(tools=[tool("calculator")], max_tokens=len(ids))
            choice = (await http.post(CHAT, json=asked)).json()["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("Let me see.", "length")
        assert "tool_calls" not in choice["message"]


async def test_tags_in_a_string_do_not_cut_a_call(client: Client, fmt: ChatFormat) -> None:
    text = "a</tool_call>b</think>c"
    ids = [fmt.tool_call_id, *fmt.encode_text('{"name": "f", "arguments": {"x": "a')]
    ids += [fmt.tool_call_end_id, *fmt.encode_text("b"), fmt.think_end_id, *fmt.encode_text('c"}}')]
    ids += [fmt.tool_call_end_id, *fmt.encode_text("Done."), fmt.end_of_turn_id]
    engine = FakeEngine(always(ids), (fmt.end_of_turn_id,))
    async with client(engine) as http:
        message = (await http.post(CHAT, json=body(tools=[tool("f")]))).json()["choices"][0]["message"]
    (call,) = message["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"x": text}
    assert message["content"] == "Done."


@pytest.mark.parametrize("arguments", ['{"a": "303 +', "null", " ", "", "[1]", "{", '{"a": NaN}', "[" * 2000])
async def test_a_conversation_goes_on_after_unsound_arguments(
    client: Client, engine: FakeEngine, fmt: ChatFormat, arguments: str
) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    messages: list[dict[str, Any]] = [*HELLO, {"role": "assistant", "content": None, "tool_calls": [call]}]
    messages.append({"role": "tool", "tool_call_id": "1", "content": None})
    async with client(engine) as http:
        response = await http.post(CHAT, json=body(messages=messages))
    assert response.status_code == 200, response.text
    prompt = fmt.decode(engine.seen[0].prompt_ids, show_control=True)
    shown = {} if arguments in ("null", " ", "") else arguments
    assert json.dumps(shown)[1:-1] in prompt


async def test_content_parts_of_peers_are_read(client: Client, engine: FakeEngine, fmt: ChatFormat) -> None:
    thinking = [
        {"type": "thinking", "thinking": "hm"},
        {"type": "thinking", "thinking": [{"type": "text", "text": "m"}]},
    ]
    plain = [*HELLO, {"role": "assistant", "content": "No. Yes."}, {"role": "user", "content": "Go"}]
    parts = [
        *HELLO,
        {
            "role": "assistant",
            "content": [*thinking, {"type": "refusal", "refusal": "No. "}, {"type": "output_text", "text": "Yes."}],
        },
        {"role": "user", "content": [{"type": "input_text", "text": "Go"}]},
    ]
    async with client(engine) as http:
        for messages in (plain, parts):
            assert (await http.post(CHAT, json=body(messages=messages))).status_code == 200
    assert engine.seen[0].prompt_ids == engine.seen[1].prompt_ids
    async with client(engine) as http:
        unread = [{"role": "user", "content": [{"type": "thinking", "thinking": "x"}]}]
        error = (await http.post(CHAT, json=body(messages=unread))).json()["error"]
    assert error["param"] == "messages[0].content[0].type"
