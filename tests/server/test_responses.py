"""`/v1/responses` over HTTP: items in, items and events out, modes and budgets, what is refused and how it is named."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import orjson
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from chat_templates.format import ChatFormat
from chat_templates.settings import DIRECT, THINKING
from server.modes.profile import Profile
from tests.fake_engine import FakeEngine
from tests.server.conftest import HELLO, MODEL, Client, always
from tests.server.controlled import close_thinking
from tests.server.test_http import error_of
from tests.server.test_launch import Running
from tests.server.test_openapi import Document

URL = "/v1/responses"
OF_SDK: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
SKY = {"type": "namespace", "name": "sky", "description": "Of the sky"}
SHELL = {"type": "custom", "name": "shell", "description": "Runs a command"}


def asked(**fields: Any) -> dict[str, Any]:
    """A request that is valid unless `fields` make it otherwise."""
    return {"model": MODEL, "input": "Hi", **fields}


def call_of(fmt: ChatFormat, name: str, arguments: str) -> list[int]:
    text = f'{{"name": "{name}", "arguments": {arguments}}}'
    return [fmt.tool_call_id, *fmt.encode_text(text), fmt.tool_call_end_id]


@pytest.fixture
def engine(fmt: ChatFormat) -> FakeEngine:
    """Thinks where thinking is open, says something, and where tools are described calls both, one with escapes."""
    said = fmt.encode_text("So be it é.")
    calls = [
        *call_of(fmt, "get_weather", '{"city": "Rome"}'),
        *call_of(fmt, "shell", '{"input": "echo \\"\\u00e9\\ud83d\\ude00\\"\\n"}'),
    ]
    thinking = [*fmt.encode_text("One, two."), *fmt.close_thinking()]

    def script(prompt: list[int]) -> Iterator[int]:
        has_tools = "# Available Tools" in fmt.decode(prompt)
        answer = [*said, *(calls if has_tools else []), fmt.end_of_turn_id]
        return iter(thinking + answer if fmt.is_thinking_open(prompt) else answer)

    return FakeEngine(script, (fmt.end_of_turn_id,))


@pytest.fixture
async def http(client: Client, engine: FakeEngine) -> AsyncIterator[httpx.AsyncClient]:
    async with client(engine) as connected:
        yield connected


def events_of(text: str) -> list[dict[str, Any]]:
    """The events of a whole stream, each valid as the SDK has it, numbered, and named as its type."""
    events = []
    for number, part in enumerate(text.removesuffix("\n\n").split("\n\n")):
        name, data = part.split("\n")
        event = orjson.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == number
        OF_SDK.validate_python(event, strict=True)
        events.append(event)
    return events


async def post(http: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await http.post(URL, json=asked(**fields))
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    Response.model_validate(body, strict=True)
    return body


async def stream(http: httpx.AsyncClient, **fields: Any) -> list[dict[str, Any]]:
    response = await http.post(URL, json=asked(stream=True, **fields))
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    return events_of(response.text)


def kinds(events: list[dict[str, Any]]) -> list[str]:
    """The types in order, without repetitions of deltas."""
    types = [event["type"].removeprefix("response.") for event in events]
    return [kind for at, kind in enumerate(types) if at == 0 or kind != types[at - 1] or not kind.endswith(".delta")]


def unnamed(value: Any) -> Any:
    """The same without ids, times and seals, which are new each time."""
    if isinstance(value, list):
        return [unnamed(one) for one in value]
    if isinstance(value, dict):
        fresh = ("id", "call_id", "created_at", "completed_at", "encrypted_content")
        return {name: unnamed(one) for name, one in value.items() if name not in fresh}
    return value


async def test_an_answer(http: httpx.AsyncClient, fmt: ChatFormat, engine: FakeEngine) -> None:
    body = await post(http, instructions="Be brief.", metadata={"a": "b"})
    (message,) = body["output"]
    assert message["content"] == [{"type": "output_text", "text": "So be it é.", "annotations": [], "logprobs": []}]
    assert (body["status"], body["model"], body["metadata"]) == ("completed", MODEL, {"a": "b"})
    assert body["usage"]["output_tokens"] == len(fmt.encode_text("So be it é.")) + 1
    assert body["usage"]["input_tokens"] == len(engine.seen[0].prompt_ids)
    assert "reasoning_finish_reason" not in body
    assert engine.seen[0].prompt_ids == fmt.render([{"role": "system", "content": "Be brief."}, *HELLO], DIRECT)


async def test_an_answer_without_text_is_a_message(client: Client, fmt: ChatFormat) -> None:
    async with client(FakeEngine(always([fmt.end_of_turn_id]), (fmt.end_of_turn_id,))) as http:
        whole, streamed = await post(http), await stream(http)
    assert [item["type"] for item in whole["output"]] == ["message"]
    assert unnamed(streamed[-1]["response"]) == unnamed(whole)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tools": [WEATHER, SHELL]},
        {"tools": [WEATHER, SHELL], "parallel_tool_calls": False},
        {"max_output_tokens": 3},
        {"max_output_tokens": 30, "tools": [WEATHER]},
        {"top_logprobs": 2},
        {"include": ["message.output_text.logprobs"], "tools": [WEATHER]},
        {"stop": "be"},
        {"reasoning_mode": "reasoning"},
        {"reasoning": {"effort": "low", "summary": "auto"}, "include": ["reasoning.encrypted_content"]},
        {"reasoning": {"effort": "high", "exclude": True}, "include": ["reasoning.encrypted_content"]},
        {"reasoning": {"enabled": True, "exclude": True}, "tools": [SHELL]},
        {"reasoning_mode": "reasoning", "thinking_token_budget": 2, "tools": [WEATHER, SHELL], "top_logprobs": 1},
        {"model": f"{MODEL}:reasoning", "max_output_tokens": 4},
    ],
)
@pytest.mark.parametrize("chunks", [(1,), (3, 1, 7)])
async def test_a_stream_is_the_response_in_parts(
    http: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, Any], chunks: tuple[int, ...]
) -> None:
    engine.chunks = chunks
    whole, events = await post(http, **fields), await stream(http, **fields)
    assert unnamed(events[-1]["response"]) == unnamed(whole)
    assert events[-1]["type"] == f"response.{whole['status']}"
    assert kinds(events)[:2] == ["created", "in_progress"]
    assert events[0]["response"]["output"] == []
    items = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert items == events[-1]["response"]["output"]
    for index, item in enumerate(items):
        own = [event for event in events if event.get("output_index") == index]
        assert (own[0]["type"], own[-1]["type"]) == ("response.output_item.added", "response.output_item.done")
        assert {event["item_id"] for event in own[1:-1]} <= {item["id"]}
        check_texts(item, own)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tools": [WEATHER, SHELL, {**SKY, "tools": [WEATHER]}], "tool_choice": "auto"},
        {"reasoning": {"effort": "low", "summary": "auto"}, "include": ["reasoning.encrypted_content"], "user": "a"},
        {"top_logprobs": 1, "max_output_tokens": 3, "metadata": {"a": "b"}, "text": {"format": {"type": "text"}}},
        {"max_output_tokens": 0},
    ],
)
async def test_they_are_as_the_openapi_document_says(http: httpx.AsyncClient, fields: dict[str, Any]) -> None:
    document = Document((await http.get("/openapi.json")).json())
    whole = await http.post(URL, json=asked(**fields))
    document.check(URL, "post", whole.status_code, "application/json", whole.json())
    if whole.status_code != 200:
        return
    for event in await stream(http, **fields):
        document.check(URL, "post", 200, "text/event-stream", event)
    path, one = f"{URL}/{{response_id}}", f"{URL}/{whole.json()['id']}"
    document.check(path, "get", 200, "application/json", (await http.get(one)).json())
    listed = (await http.get(f"{one}/input_items")).json()
    document.check(f"{path}/input_items", "get", 200, "application/json", listed)
    document.check(path, "delete", 200, "application/json", (await http.delete(one)).json())
    document.check(path, "get", 404, "application/json", (await http.get(one)).json())
    counted = (await http.post(f"{URL}/input_tokens", json=asked(**fields))).json()
    document.check(f"{URL}/input_tokens", "post", 200, "application/json", counted)


def check_texts(item: dict[str, Any], events: list[dict[str, Any]]) -> None:
    """The deltas of an item add up to the texts in its `done` events and in the item itself."""

    def joined(kind: str) -> str:
        return "".join(event["delta"] for event in events if event["type"] == f"response.{kind}.delta")

    def done(kind: str) -> list[dict[str, Any]]:
        return [event for event in events if event["type"] == f"response.{kind}.done"]

    match item["type"]:
        case "message":
            (part,), (text,) = item["content"], done("output_text")
            assert joined("output_text") == text["text"] == part["text"]
            told = [entry for event in events if event["type"].endswith("text.delta") for entry in event["logprobs"]]
            assert told == text["logprobs"] == part["logprobs"]
        case "reasoning":
            for part, kind in [*zip(item.get("content", []), ["reasoning_text"], strict=False)]:
                assert joined(kind) == done(kind)[0]["text"] == part["text"]
            for part in item["summary"]:
                assert joined("reasoning_summary_text") == part["text"]
        case "function_call":
            assert joined("function_call_arguments") == item["arguments"]
            assert done("function_call_arguments")[0]["arguments"] == item["arguments"]
        case "custom_tool_call":
            assert joined("custom_tool_call_input") == item["input"] == done("custom_tool_call_input")[0]["input"]


async def test_the_order_of_the_events(http: httpx.AsyncClient) -> None:
    events = await stream(http, reasoning={"effort": "low", "summary": "detailed"}, tools=[WEATHER, SHELL])
    assert kinds(events) == [
        *("created", "in_progress"),
        *("output_item.added", "content_part.added", "reasoning_summary_part.added"),
        *(["reasoning_text.delta", "reasoning_summary_text.delta"] * (kinds(events).count("reasoning_text.delta"))),
        *("reasoning_text.done", "content_part.done", "reasoning_summary_text.done", "reasoning_summary_part.done"),
        *("output_item.done", "output_item.added", "content_part.added", "output_text.delta", "output_text.done"),
        *("content_part.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"),
        *("output_item.added", "custom_tool_call_input.delta", "custom_tool_call_input.done", "output_item.done"),
        "completed",
    ]


async def test_thinking(http: httpx.AsyncClient, engine: FakeEngine, fmt: ChatFormat) -> None:
    body = await post(http, reasoning={"effort": "low"})
    thought, message = body["output"]
    assert thought["content"] == [{"type": "reasoning_text", "text": "One, two."}]
    assert thought["summary"] == []
    assert message["content"][0]["text"] == "So be it é."
    assert body["reasoning_finish_reason"] == "natural"
    assert body["usage"]["output_tokens_details"]["reasoning_tokens"] > 0
    assert body["reasoning"] == {"effort": "low", "summary": None}
    assert engine.seen[-1].prompt_ids == fmt.render(HELLO, THINKING)


async def test_a_budget_is_exact(http: httpx.AsyncClient) -> None:
    body = await post(http, reasoning_mode="reasoning", thinking_token_budget=2)
    assert body["usage"]["output_tokens_details"]["reasoning_tokens"] == 2
    assert body["reasoning_finish_reason"] == "budget"


async def test_a_limit_leaves_it_incomplete(http: httpx.AsyncClient) -> None:
    body = await post(http, max_output_tokens=3)
    assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert body["output"][0]["status"] == "incomplete"
    assert body["completed_at"] is None


async def test_calls(http: httpx.AsyncClient) -> None:
    _, function, custom = (await post(http, tools=[WEATHER, SHELL]))["output"]
    assert (function["name"], json.loads(function["arguments"])) == ("get_weather", {"city": "Rome"})
    assert (custom["type"], custom["name"], custom["input"]) == ("custom_tool_call", "shell", 'echo "é😀"\n')


async def test_every_kind_of_item_comes_back_as_its_turn(
    http: httpx.AsyncClient, engine: FakeEngine, fmt: ChatFormat
) -> None:
    items = [
        {"role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user",
         "content": [{"type": "input_text", "text": "We"}, {"type": "text", "text": "ather?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "phase": "commentary",
         "content": [{"type": "output_text", "text": "I look.", "annotations": [], "logprobs": []}]},
        {"type": "function_call", "id": "fc_1", "call_id": "a", "name": "get_weather", "arguments": '{"city": "Rome"}',
         "status": "completed"},
        {"type": "custom_tool_call", "id": "ctc_1", "call_id": "b", "name": "shell", "input": "ls\n"},
        {"type": "function_call_output", "call_id": "a", "output": "sunny"},
        {"type": "custom_tool_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "file"}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {"role": "assistant", "content": "Well."},
        {"role": "user", "content": "And?"},
    ]  # fmt: skip
    await post(http, input=items, instructions="First.")
    calls = [
        {"id": "a", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Rome"}}},
        {"id": "b", "type": "function", "function": {"name": "shell", "arguments": {"input": "ls\n"}}},
    ]
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "First."},
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "I look.", "reasoning_content": "Hm.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "a", "content": "sunny"},
        {"role": "tool", "tool_call_id": "b", "content": "file"},
        {"role": "assistant", "content": "No."},
        {"role": "assistant", "content": "Well."},
        {"role": "user", "content": "And?"},
    ]
    assert engine.seen[-1].prompt_ids == fmt.render(messages, DIRECT)


def grammar_of(engine: FakeEngine) -> str:
    """Of the last generation."""
    grammar = engine.seen[-1].sampling.grammar
    assert grammar is not None
    return grammar


async def test_tools_and_their_choice(http: httpx.AsyncClient, engine: FakeEngine, fmt: ChatFormat) -> None:
    hosted = {"type": "web_search"}
    body = await post(http, tools=[hosted, WEATHER])
    assert [tool["type"] for tool in body["tools"]] == ["function"]
    function = {name: WEATHER[name] for name in ("name", "description", "parameters")}
    assert engine.seen[-1].prompt_ids == fmt.render(HELLO, DIRECT, [{"type": "function", "function": function}])
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "get_weather"}]}
    before = engine.seen[-1].prompt_ids
    body = await post(http, tools=[SHELL, WEATHER], tool_choice=allowed)
    assert engine.seen[-1].prompt_ids == before
    assert engine.seen[-1].sampling.grammar is None
    assert len(body["tools"]) == 2
    assert body["tool_choice"] == allowed
    await post(http, tools=[SHELL, WEATHER], tool_choice={**allowed, "mode": "required"})
    assert "get_weather" in grammar_of(engine)
    assert "shell" not in grammar_of(engine)
    await post(http, tools=[SHELL, WEATHER], tool_choice={"type": "custom", "name": "shell"})
    assert "get_weather" not in grammar_of(engine)
    form = {"type": "grammar", "syntax": "regex", "definition": "a|bc"}
    await post(http, tools=[{**SHELL, "format": form}], tool_choice="required")
    assert "^(?:a|bc)$" in grammar_of(engine)
    lark = {"type": "grammar", "syntax": "lark", "definition": 'start: "a" LF\n%import common.LF'}
    for choice in ("required", "auto"):
        await post(http, tools=[{**SHELL, "format": lark}], tool_choice=choice)
        assert "%lark {" in grammar_of(engine)
    marked = {"type": "object", "properties": {"input": {"type": "string", "x-lark": 'start: "a"'}}}
    await post(http, tools=[{**WEATHER, "parameters": marked}], tool_choice="required")
    assert "%lark" not in grammar_of(engine)  # a function of the client's is bound by its JSON schema alone
    await post(http, tools=[{**WEATHER, "strict": True}])
    strict = {"type": "function", "function": {**function, "strict": True}}
    assert engine.seen[-1].prompt_ids == fmt.render(HELLO, DIRECT, [strict])
    await post(http, tools=[WEATHER], tool_choice="none")
    assert engine.seen[-1].sampling.logit_bias


async def test_tools_in_a_namespace(client: Client, fmt: ChatFormat) -> None:
    called = [*call_of(fmt, "sky.get_weather", '{"city": "Rome"}'), *call_of(fmt, "sky.shell", '{"input": "ls"}')]
    engine = FakeEngine(always([*called, fmt.end_of_turn_id]), (fmt.end_of_turn_id,))
    tools = [{**SKY, "tools": [WEATHER, SHELL]}, SHELL]
    async with client(engine) as http:
        body, events = await post(http, tools=tools), await stream(http, tools=tools)
        assert unnamed(events[-1]["response"]) == unnamed(body)
        function, custom = body["output"]
        assert (function["name"], function["namespace"]) == ("get_weather", "sky")
        assert (custom["name"], custom["namespace"], custom["input"]) == ("shell", "sky", "ls")
        assert body["tools"][0]["tools"][0]["name"] == "get_weather"
        await post(http, input=[*HELLO, function, custom], tools=tools)
        assert engine.seen[-1].prompt_ids[: len(engine.seen[0].prompt_ids)] == engine.seen[0].prompt_ids
        assert "sky.get_weather" in fmt.decode(engine.seen[-1].prompt_ids[len(engine.seen[0].prompt_ids) :])
        wrong = [{**SKY, "tools": [{**WEATHER, "name": "a b"}]}]
        assert error_of(await http.post(URL, json=asked(tools=wrong)))["param"] == "tools[0].tools[0].name"


async def test_a_form_binds_the_answer(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    form = {
        "type": "json_schema",
        "name": "a",
        "schema": {"type": "object", "properties": {"far": {"type": "integer"}}},
    }
    body = await post(http, text={"format": form, "verbosity": "low"}, reasoning_mode="reasoning")
    assert body["text"] == {"format": {**form, "description": None, "strict": None}, "verbosity": "low"}
    assert engine.seen[-2].sampling.grammar is None
    assert "far" in grammar_of(engine)
    body = await post(http, text={"format": {"type": "json_object"}})
    assert body["text"] == {"format": {"type": "json_object"}}
    assert engine.seen[-1].sampling.grammar


async def test_sampling_is_the_clients_or_the_modes(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    body = await post(http, temperature=0.5, seed=7, presence_penalty=1, reasoning_mode="reasoning")
    assert (body["temperature"], body["top_p"], body["presence_penalty"]) == (0.5, 0.95, 1.0)
    assert (engine.seen[-1].sampling.temperature, engine.seen[-1].sampling.seed) == (0.5, 7)


IMAGE = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
OUTPUT = {"type": "function_call_output", "call_id": "a"}
GRAMMAR = {"type": "grammar", "syntax": "lark", "definition": "start: /a/"}


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"model": None}, "model", "must be a valid string"),
        ({"model": 5}, "model", "must be a valid string"),
        ({"input": None}, "input", "is required"),
        ({"input": 5}, "input", "must be a string or a list of items"),
        ({"input": []}, "input", "at least 1 item"),
        ({"input": ["Hi"]}, "input[0]", "must be an item"),
        ({"input": [{"type": "web_search_call", "id": "a"}]}, "input[0]", "must be an item"),
        ({"input": [{"type": "message", "role": "tool", "content": "a"}]}, "input[0].role", "must be"),
        ({"input": [{"role": "user"}]}, "input[0].content", "is required"),
        ({"input": [{"role": "user", "content": [IMAGE]}]}, "input[0].content[0]", "no images, audio or files"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0]", "no images"),
        ({"input": [{**OUTPUT, "output": [IMAGE]}]}, "input[0].output[0]", "no images"),
        ({"input": [{**OUTPUT}]}, "input[0].output", "is required"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].id", "no item 'msg_1' is stored here"),
        (
            {"input": [{"type": "reasoning", "summary": [], "encrypted_content": "AAAA"}]},
            "input[0].encrypted_content",
            "was not sealed by this server",
        ),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "cannot be continued"),
        ({"max_output_tokens": 0}, "max_output_tokens", "greater than or equal to 1"),
        ({"max_output_tokens": 131073}, "max_output_tokens", "at most 131072"),
        ({"input": "x " * 50_000}, "input", "maximum context length"),
        ({"reasoning_mode": "deep"}, "reasoning_mode", "must be"),
        ({"reasonning_mode": "reasoning"}, "reasonning_mode", "Did you mean"),
        ({"reasoning": {"effort": "deep"}}, "reasoning.effort", "must be"),
        ({"reasoning": {"summary": "long"}}, "reasoning.summary", "must be"),
        ({"reasoning": {"effort": "none"}, "model": f"{MODEL}:reasoning"}, "reasoning.effort", "model asks for"),
        ({"include": ["everything"]}, "include[0]", "must be"),
        ({"top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
        ({"metadata": {"a": 5}}, "metadata.a", "valid string"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata", "at most 16"),
        ({"truncation": "maybe"}, "truncation", "must be"),
        ({"n": 2}, "n", "must be 1"),
        ({"background": True, "store": False}, "background", "contradicts store"),
        ({"conversation": "conv_1"}, "conversation", "use previous_response_id"),
        ({"prompt": {"id": "a"}}, "prompt", "is not supported"),
        ({"context_management": [{"type": "compaction"}]}, "context_management", "is not supported"),
        ({"messages": HELLO}, "messages", "use input"),
        ({"max_tokens": 5}, "max_tokens", "use max_output_tokens"),
        ({"response_format": {"type": "json_object"}}, "response_format", "use text.format"),
        ({"functions": [{"name": "f"}]}, "functions", "use tools"),
        ({"text": {"format": {"type": "xml"}}}, "text.format", "must be an object whose type is one of"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema", "is required"),
        (
            {"text": {"format": {"type": "json_schema", "schema": {"type": "wrong"}}}},
            "text.format.schema",
            "no grammar takes this",
        ),
        (
            {"text": {"format": {"type": "json_object"}}, "structured_outputs": {"regex": "a"}},
            "structured_outputs",
            "both bind the answer",
        ),
        ({"tools": [{"type": "teleport"}]}, "tools[0]", "must be an object whose type is one of function, custom"),
        ({"tools": [{"type": "function"}]}, "tools[0].name", "is required"),
        ({"tools": [{"type": "mcp"}, {**WEATHER, "name": "a b"}]}, "tools[1].name", "up to 64 letters"),
        ({"tools": [{**WEATHER, "parameters": "x"}]}, "tools[0].parameters", "must be"),
        (
            {"tools": [{**SHELL, "format": {**GRAMMAR, "definition": "a: b"}}]},
            "tools[0].format.definition",
            "no grammar takes this",
        ),
        (
            {"tools": [WEATHER, {**SKY, "tools": [{**SHELL, "format": {**GRAMMAR, "definition": "start: %json {}"}}]}]},
            "tools[1].tools[0].format.definition",
            "%json is not supported",
        ),
        ({"tools": [{**SHELL, "format": {**GRAMMAR, "syntax": "bnf"}}]}, "tools[0].format.syntax", "must be"),
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice.name", "no function tool 'f'"),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "custom", "name": "get_weather"}},
            "tool_choice.name",
            "no custom",
        ),
        ({"tools": [{"type": "web_search"}], "tool_choice": {"type": "web_search"}}, "tool_choice", "must be"),
        (
            {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]}},
            "tool_choice.tools[0].name",
            "no function tool 'f'",
        ),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"priority": 5}, "priority", "the server's to set"),
    ],
)
async def test_errors_name_the_field(http: httpx.AsyncClient, fields: dict[str, Any], param: str, said: str) -> None:
    for streamed in (False, True):
        response = await http.post(URL, json=asked(stream=streamed, **fields))
        error = error_of(response)
        assert (response.status_code, error["param"]) == (400, param), error
        assert said in error["message"]


async def test_the_model_must_be_named_and_there(http: httpx.AsyncClient) -> None:
    response = await http.post(URL, json={"input": "Hi"})
    assert (response.status_code, error_of(response)["param"]) == (400, "model")
    response = await http.post(URL, json=asked(model="gpt-5"))
    assert (response.status_code, error_of(response)["code"]) == (404, "model_not_found")


async def test_sealed_thinking_comes_back(http: httpx.AsyncClient, engine: FakeEngine, fmt: ChatFormat) -> None:
    fields = {"reasoning": {"effort": "low", "exclude": True}, "include": ["reasoning.encrypted_content"]}
    thought, message = (await post(http, store=False, **fields))["output"]
    assert "content" not in thought
    assert "One" not in thought["encrypted_content"]
    following = {"role": "user", "content": "And?"}
    await post(http, input=[*HELLO, thought, message, following])
    said = {"role": "assistant", "content": "So be it é.", "reasoning_content": "One, two."}
    assert engine.seen[-1].prompt_ids == fmt.render([*HELLO, said, following], DIRECT)
    token = thought["encrypted_content"]
    changed = {**thought, "encrypted_content": token[:8] + ("B" if token[8] == "A" else "A") + token[9:]}
    error = error_of(await http.post(URL, json=asked(input=[*HELLO, changed, message, following])))
    assert (error["param"], error["code"]) == ("input[1].encrypted_content", "invalid_encrypted_content")


async def test_old_turns_are_left_out_only_where_that_is_asked_for(
    client: Client, engine: FakeEngine, fmt: ChatFormat
) -> None:
    assert engine.ready is not None
    turns = [
        turn
        for number in range(30)
        for turn in ({"role": "user", "content": f"Question {number}"}, {"role": "assistant", "content": "A " * 40})
    ]
    last = {"role": "user", "content": "And?"}
    system = {"role": "system", "content": "First."}
    async with client(engine) as http:
        long = asked(input=[*turns, last], instructions="First.", max_output_tokens=3000)
        error = error_of(await http.post(URL, json=long))
        assert error["code"] == "context_length_exceeded"
        await post(http, **{**long, "truncation": "auto"})
        kept = engine.seen[-1].prompt_ids
        fits = [n for n in range(0, 60, 2) if len(fmt.render([system, *turns[n:], last], DIRECT)) + 3000 <= 4096]
        assert fits[0] > 0
        assert kept == fmt.render([system, *turns[fits[0] :], last], DIRECT)
        too_long = asked(input="x " * 5000, truncation="auto")
        assert error_of(await http.post(URL, json=too_long))["code"] == "context_length_exceeded"


async def test_an_input_is_counted(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    fields = asked(instructions="Be brief.", tools=[WEATHER])
    counted = (await http.post(f"{URL}/input_tokens", json=fields)).json()
    await post(http, **fields)
    assert counted == {"object": "response.input_tokens", "input_tokens": len(engine.seen[-1].prompt_ids)}
    assert (await http.post(f"{URL}/compact", json=fields)).status_code == 404


async def test_an_engine_that_is_lost(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.fail_after = 2
    response = await http.post(URL, json=asked())
    assert (response.status_code, error_of(response)["type"]) == (503, "service_unavailable_error")
    *_, told, failed = await stream(http)
    assert (told["type"], told["error"]["type"]) == ("error", "service_unavailable_error")
    assert told["message"] == told["error"]["message"] == failed["response"]["error"]["message"]
    assert (failed["type"], failed["response"]["status"]) == ("response.failed", "failed")
    assert failed["response"]["error"]["code"] == "server_error"
    response_id = failed["response"]["id"]
    assert (await http.get(f"{URL}/{response_id}")).status_code == 404


def test_a_client_ends_the_thinking(thinker: FakeEngine, profile: Profile, fmt: ChatFormat) -> None:
    running = Running(thinker, profile, fmt)
    try:
        fields = asked(stream=True, reasoning_mode="reasoning", reasoning={"max_tokens": 20_000})
        closed = close_thinking(running.url, URL, fields)
    finally:
        running.server.should_exit = True
        running.thread.join()
    assert closed.told == {"id": closed.id, "object": "response.control", "action": "end_reasoning", "closed": True}
    assert (closed.over.status_code, closed.unknown.status_code) == (404, 400)
    final = events_of(closed.text)[-1]["response"]
    assert (final["status"], final["reasoning_finish_reason"]) == ("completed", "stopped")
    assert final["output"][1]["content"][0]["text"] == "forty"


async def test_a_running_response_can_be_seen_and_cancelled(
    thinker: FakeEngine, profile: Profile, fmt: ChatFormat
) -> None:
    async with connected(Running(thinker, profile, fmt)) as http:
        body = asked(stream=True, reasoning_mode="reasoning", reasoning={"max_tokens": 20_000})
        async with http.stream("POST", URL, json=body) as response:
            lines = response.aiter_lines()
            events = [await next_event(lines) for _ in range(8)]
            response_id = events[0]["response"]["id"]
            seen = (await http.get(f"{URL}/{response_id}")).json()
            assert (seen["status"], seen["output"][0]["status"]) == ("in_progress", "in_progress")
            cancelled = (await http.post(f"{URL}/{response_id}/cancel")).json()
            assert (cancelled["id"], cancelled["status"]) == (response_id, "cancelled")
            while events[-1]["type"] != "response.incomplete":
                events.append(await next_event(lines))
        final = events[-1]["response"]
        assert (final["status"], final["output"][0]["status"]) == ("cancelled", "incomplete")
        assert (await http.get(f"{URL}/{response_id}")).json() == final
        assert (await http.post(f"{URL}/resp_1/cancel")).status_code == 404
        over = await post(http)
        again = await http.post(f"{URL}/{over['id']}/cancel")
        assert (again.status_code, error_of(again)["param"]) == (400, "response_id")


@asynccontextmanager
async def connected(running: Running) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server in a thread, which ends with it."""
    try:
        async with httpx.AsyncClient(base_url=running.url, timeout=60) as http:
            yield http
    finally:
        running.server.should_exit = True
        await asyncio.to_thread(running.thread.join)


async def next_event(lines: AsyncIterator[str]) -> dict[str, Any]:
    async for line in lines:
        if line.startswith("data: "):
            event: dict[str, Any] = orjson.loads(line.removeprefix("data: "))
            return event
    raise AssertionError("the stream has ended")


async def test_a_client_that_leaves_ends_its_response(thinker: FakeEngine, profile: Profile, fmt: ChatFormat) -> None:
    async with connected(Running(thinker, profile, fmt)) as http:
        body = asked(stream=True, reasoning_mode="reasoning")
        async with http.stream("POST", URL, json=body) as response:
            first = await next_event(response.aiter_lines())
        while not thinker.aborted:  # noqa: ASYNC110 - another thread's list
            await asyncio.sleep(0.01)
        assert (await http.get(f"{URL}/{first['response']['id']}")).status_code == 404
