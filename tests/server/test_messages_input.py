"""Anthropic's conversations: how each block comes to the model, what is refused and how, and what is counted."""

from typing import Any

import orjson
import pytest

from chat_templates.format import ChatFormat
from chat_templates.settings import DIRECT, THINKING
from server.api.common.sealed import seal
from server.api.messages.body import read_messages_request
from server.api.messages.conversation import conversation_of
from server.engine_client import EngineStatus
from tests.fake_engine import FakeEngine
from tests.server.anthropic import CLOCK, COUNT, HELLO, MESSAGES, WEATHER, asked, check, events_of
from tests.server.conftest import MODEL, Client, always

ONE_PIXEL = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
IMAGE = {"type": "image", "source": ONE_PIXEL}
SEARCH = {"type": "web_search_20250305", "name": "web_search"}
VERSION = {"anthropic-version": "2023-06-01"}
CALL = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Rome"}}


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


def result(call_id: str = "toolu_1", **fields: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": call_id, **fields}


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content[0] if isinstance(content[0], str) else list(content)}


def assistant(*content: Any) -> dict[str, Any]:
    return {**user(*content), "role": "assistant"}


def call(call_id: str = "toolu_1", **arguments: Any) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": "weather", "arguments": arguments}}


def neutral(*messages: dict[str, Any], **fields: Any) -> list[Any]:
    """What templates get, without what is empty."""
    body = read_messages_request(orjson.dumps(asked(messages=list(messages), **fields)))
    conversation, _ = conversation_of(body)
    return [
        {name: value for name, value in message.items() if value or name == "content"}
        for message in conversation.messages
    ]


@pytest.fixture
def engine(fmt: ChatFormat) -> FakeEngine:
    return FakeEngine(always([*fmt.encode_text("83"), fmt.end_of_turn_id]), (fmt.end_of_turn_id,))


def test_text() -> None:
    assert neutral(user("Hi")) == [{"role": "user", "content": "Hi"}]
    assert neutral(user(text("Hi"), text("there"))) == [{"role": "user", "content": "Hi\n\nthere"}]


def test_instructions() -> None:
    expected = [{"role": "system", "content": "Be brief.\n\nBe kind."}, {"role": "user", "content": "Hi"}]
    assert neutral(user("Hi"), system="Be brief.\n\nBe kind.") == expected
    assert neutral(user("Hi"), system=[text("Be brief."), text("Be kind.")]) == expected
    assert neutral(user("Hi"), system=[]) == expected[1:]
    later = neutral(user("Hi"), {"role": "system", "content": "Be brief."}, user("So?"))
    assert [message["role"] for message in later] == ["user", "system", "user"]


def test_neighbours_of_one_role_are_one_turn() -> None:
    messages = neutral(user("a"), user(text("b")), assistant("c"), assistant(text("d")), user("e"))
    assert messages == [
        {"role": "user", "content": "a\n\nb"},
        {"role": "assistant", "content": "cd"},
        {"role": "user", "content": "e"},
    ]


def test_calls_and_results() -> None:
    second = {**CALL, "id": "toolu_2", "input": {}}
    messages = neutral(
        user("Where?"),
        assistant(text("Let me see."), CALL, second),
        user(result(content="21"), result("toolu_2", content=[text("a"), text("b")]), text("And now?")),
    )
    assert messages == [
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": "Let me see.", "tool_calls": [call(city="Rome"), call("toolu_2")]},
        {"role": "tool", "content": "21", "tool_call_id": "toolu_1"},
        {"role": "tool", "content": "a\n\nb", "tool_call_id": "toolu_2"},
        {"role": "user", "content": "And now?"},
    ]


@pytest.mark.parametrize(
    ("fields", "content"),
    [
        ({"content": "no city", "is_error": True}, "Error: no city"),
        ({"content": [text("no city")], "is_error": True}, "Error: no city"),
        ({"content": "21", "is_error": False}, "21"),
        ({"content": None}, ""),
        ({}, ""),
    ],
)
def test_results(fields: dict[str, Any], content: str) -> None:
    *_, last = neutral(user("Where?"), assistant(CALL), user(result(**fields)))
    assert last == {"role": "tool", "content": content, "tool_call_id": "toolu_1"}


def test_thinking_that_comes_back() -> None:
    ours, hidden = (
        {"type": "thinking", "thinking": shown, "signature": seal("thinking", "so")} for shown in ("so", "")
    )
    foreign = {"type": "thinking", "thinking": "hm", "signature": "EqQBCkYIBBgCKkA="}
    unsigned = {"type": "thinking", "thinking": "hm"}
    redacted = {"type": "redacted_thinking", "data": "EmwKAhgB"}
    for block, known in [(ours, "so"), (hidden, "so"), (foreign, ""), (unsigned, ""), (redacted, "")]:
        _, turn, _ = neutral(user("a"), assistant(block, text("b")), user("c"))
        assert turn["content"] == "b"
        assert turn.get("reasoning_content", "") == known


async def test_past_thinking_is_dropped_where_the_template_drops_it(
    client: Client, engine: FakeEngine, fmt: ChatFormat
) -> None:
    block = {"type": "thinking", "thinking": "so", "signature": seal("thinking", "so")}
    messages = [user("a"), assistant(block, text("b")), user("c")]
    plain = [user("a"), assistant("b"), user("c")]
    async with client(engine) as http:
        await http.post(MESSAGES, json=asked(messages=messages))
    assert engine.seen[0].prompt_ids == fmt.render(plain, DIRECT)


async def test_a_round_trip_with_a_tool(client: Client, fmt: ChatFormat) -> None:
    calling = [fmt.tool_call_id, *fmt.encode_text('{"name": "weather", "arguments": {"city": "Rome"}}')]
    calling += [fmt.tool_call_end_id, fmt.end_of_turn_id]
    thinking = [*fmt.encode_text("Rome"), *fmt.close_thinking()]
    engine = FakeEngine(always([*thinking, *calling]), (fmt.end_of_turn_id,))
    fields = asked(tools=[WEATHER], thinking={"type": "adaptive"})
    async with client(engine) as http:
        answer = (await http.post(MESSAGES, json=fields)).json()
        assert answer["stop_reason"] == "tool_use"
        *_, called = answer["content"]
        messages = [
            *HELLO,
            {"role": "assistant", "content": answer["content"]},
            user(result(called["id"], content="21")),
        ]
        assert (await http.post(MESSAGES, json={**fields, "messages": messages})).status_code == 200
    shown = fmt.decode(engine.seen[-1].prompt_ids, show_control=True)
    assert '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>' in shown
    assert '<tool_result>{"result": "21"}</tool_result>' in shown


async def test_prefill(client: Client, engine: FakeEngine, fmt: ChatFormat) -> None:
    messages = [*HELLO, assistant(text("It is "))]
    async with client(engine) as http:
        message = (await http.post(MESSAGES, json=asked(messages=messages))).json()
    plain = [*HELLO, assistant("It is ")]
    assert engine.seen[0].prompt_ids == fmt.render(plain, DIRECT, continue_final_message=True)
    assert message["content"][0]["text"] == "83"


async def test_thinking_is_gone_on_with(client: Client, engine: FakeEngine, fmt: ChatFormat) -> None:
    block = {"type": "thinking", "thinking": "38+", "signature": seal("thinking", "38+")}
    async with client(engine) as http:
        await http.post(MESSAGES, json=asked(messages=[*HELLO, assistant(block)], thinking={"type": "enabled"}))
    plain = [*HELLO, {"role": "assistant", "content": "", "reasoning_content": "38+"}]
    assert engine.seen[0].prompt_ids == fmt.render(plain, THINKING, continue_final_message=True)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"system": "Be brief.", "tools": [WEATHER, CLOCK], "tool_choice": {"type": "any"}},
        {"tools": [{**WEATHER, "name": "a" * 128}]},
        {"thinking": {"type": "adaptive"}, "system": [text("Be brief.")]},
        {"messages": [user("a"), assistant(CALL), user(result(content="21"))], "tools": [WEATHER]},
        {"messages": [user("a"), assistant("b")]},
    ],
)
async def test_what_is_counted_is_what_is_used(client: Client, engine: FakeEngine, fields: dict[str, Any]) -> None:
    async with client(engine) as http:
        request = {name: value for name, value in asked(**fields).items() if name != "max_tokens"}
        counted = await http.post(COUNT, json=request)
        usage = (await http.post(MESSAGES, json=asked(**fields))).json()["usage"]
    assert counted.json() == {"input_tokens": usage["input_tokens"]}
    check("CountMessageTokensResponse", counted.json())


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": None}, "max_tokens: "),
    ({"max_tokens": -1}, "max_tokens: "),
    ({"messages": []}, "messages: "),
    ({"messages": "Hi"}, "messages: "),
    ({"messages": [{"role": "tool", "content": "Hi"}]}, "messages[0]: must be an object whose role is user, assistant"),
    ({"messages": [user(5)]}, "messages[0].content[0]: must be a block whose type is one of text, tool_result"),
    (
        {"messages": [{"role": "user", "content": 5}]},
        "messages[0].content: must be a string or a list of content blocks",
    ),
    ({"messages": [{"role": "user"}]}, "messages[0].content: is required"),
    ({"messages": [user(IMAGE)]}, "messages[0].content[0]: must be a block whose type is one of text, tool_result"),
    ({"messages": [user({"type": "document", "source": {}})]}, "this model reads only text"),
    ({"messages": [user(text("a"), {"type": "text"})]}, "messages[0].content[1].text: is required"),
    ({"messages": [user(CALL)]}, "messages[0].content[0]: "),
    ({"messages": [user("a"), assistant(result())]}, "messages[1].content[0]: "),
    (
        {"messages": [user("a"), assistant(CALL), user(result(content=[IMAGE]))]},
        "messages[2].content[0].content[0].type: must be 'text'",
    ),
    ({"messages": [user("a"), assistant({**CALL, "input": "{}"})]}, "messages[1].content[0].input: "),
    ({"messages": [user("a"), assistant(CALL)]}, "messages[1]: tool_use blocks need tool_result blocks"),
    (
        {"messages": [user("a"), assistant({"type": "thinking", "thinking": "b", "signature": seal("thinking", "c")})]},
        "messages[1].content[0].signature: it is that of another text",
    ),
    ({"system": [IMAGE]}, "system[0].type: must be 'text'"),
    ({"tools": [SEARCH]}, "tools[0].type: this server has no 'web_search_20250305'"),
    ({"tools": [{"name": "f"}]}, "tools[0].input_schema: is required"),
    ({"tools": [{**WEATHER, "name": "a b"}]}, "tools[0].name: "),
    ({"tools": [{**WEATHER, "name": "a" * 129}]}, "tools[0].name: a function's name has up to 128 letters"),
    (
        {"tools": [{**WEATHER, "input_schema": {"type": "nonsense"}}], "tool_choice": {"type": "any"}},
        "tools[0].input_schema: ",
    ),
    ({"tool_choice": {"type": "any"}}, "tool_choice needs tools"),
    ({"tools": [WEATHER], "tool_choice": {"type": "tool"}}, "tool_choice: a choice of type tool must have a name"),
    ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "f"}}, "tool_choice"),
    ({"tools": [WEATHER], "tool_choice": {"type": "required"}}, "tool_choice.type: must be 'auto', 'any', 'tool' or"),
    ({"thinking": {"type": "on"}}, "thinking.type: must be 'enabled', 'adaptive' or 'disabled'"),
    (
        {"thinking": {"type": "disabled"}, "reasoning_mode": "reasoning"},
        "reasoning_mode asks for reasoning and thinking",
    ),
    (
        {"thinking": {"type": "enabled", "budget_tokens": 5}, "thinking_token_budget": 6},
        "thinking_token_budget and thinking.budget_tokens bound the thinking differently",
    ),
    ({"reasoning_mode": "deep"}, 'reasoning_mode must be "standard" or "reasoning"'),
    ({"output_config": {"effort": "some"}}, "output_config.effort: "),
    ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema: is required"),
    (
        {
            "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}},
            "output_format": {"type": "json_schema", "schema": {}},
        },
        "output_config and output_format both bind the answer",
    ),
    (
        {"output_format": {"type": "json_schema", "schema": {"type": "nonsense"}}},
        "output_format.schema",
    ),
    ({"stop_sequences": [""]}, "stop_sequences[0]: "),
    ({"temperature": 3}, "temperature: "),
    ({"container": "c_1"}, "container: "),
    ({"mcp_servers": [{"type": "url"}]}, "mcp_servers: "),
    ({"reasonning_mode": "reasoning"}, 'Did you mean "reasoning_mode"?'),
]


@pytest.mark.parametrize(("fields", "said"), REFUSED)
async def test_what_is_refused(client: Client, engine: FakeEngine, fields: dict[str, Any], said: str) -> None:
    async with client(engine) as http:
        response = await http.post(MESSAGES, json=asked(**fields))
        streamed = await http.post(MESSAGES, json=asked(**fields, stream=True))
    error = response.json()
    assert response.status_code == 400, error
    assert (error["type"], error["error"]["type"]) == ("error", "invalid_request_error")
    assert said in error["error"]["message"]
    check("ErrorResponse", error)
    assert streamed.json()["error"] == error["error"]
    assert not engine.seen


async def test_input_that_is_nested_without_end(client: Client, engine: FakeEngine) -> None:
    deep: dict[str, Any] = {}
    for _ in range(80):
        deep = {"a": deep}
    messages = [user("a"), assistant(text("b"), {**CALL, "input": deep}), user(result())]
    async with client(engine) as http:
        error = (await http.post(MESSAGES, json=asked(messages=messages))).json()["error"]
        tool = {**WEATHER, "input_schema": deep}
        of_tool = (await http.post(COUNT, json=asked(tools=[tool]))).json()["error"]
    assert error["message"].startswith("messages[1].content[1].input: nested more than")
    assert of_tool["message"].startswith("tools[0]")


@pytest.mark.parametrize("path", [MESSAGES, COUNT])
async def test_a_model_that_is_not_here(client: Client, engine: FakeEngine, path: str) -> None:
    async with client(engine) as http:
        response = await http.post(path, json=asked(model="claude-sonnet-4-5"))
    assert (response.status_code, response.json()["error"]["type"]) == (404, "not_found_error")
    assert MODEL in response.json()["error"]["message"]


async def test_a_prompt_that_is_too_long(client: Client, engine: FakeEngine, fmt: ChatFormat) -> None:
    """In Anthropic's words, which Claude Code reads."""
    messages = [user("word " * 5000)]
    tokens = len(fmt.render(messages, DIRECT))
    async with client(engine) as http:
        error = (await http.post(MESSAGES, json=asked(messages=messages))).json()
        counted = await http.post(COUNT, json={"messages": messages})
    assert error["error"] == {
        "type": "invalid_request_error",
        "message": f"prompt is too long: {tokens} tokens > 4096 maximum",
    }
    assert counted.json() == {"input_tokens": tokens}


async def test_other_errors(client: Client, engine: FakeEngine) -> None:
    async with client(engine) as http:
        seen = []
        tries: list[tuple[str, str, dict[str, Any]]] = [
            ("POST", MESSAGES, {"content": b"{"}),
            ("POST", MESSAGES, {"content": b"[]"}),
            ("POST", MESSAGES, {"content": b"a" * 5_000_000}),
            ("POST", MESSAGES, {"content": b"{}", "headers": {"content-type": "text/plain"}}),
            ("GET", MESSAGES, {}),
            ("POST", f"{MESSAGES}/batches", {}),
        ]
        for method, path, options in tries:
            response = await http.request(method, path, **options)
            check("ErrorResponse", _published(response.json()))
            seen.append((response.status_code, response.json()["error"]["type"]))
    assert seen == [
        (400, "invalid_request_error"),
        (400, "invalid_request_error"),
        (413, "request_too_large"),
        (415, "invalid_request_error"),
        (405, "invalid_request_error"),
        (404, "not_found_error"),
    ]


def _published(error: dict[str, Any]) -> dict[str, Any]:
    """Anthropic's documentation has one kind of error that its published schemas lack."""
    if error["error"]["type"] == "request_too_large":
        error["error"]["type"] = "invalid_request_error"
    return error


async def test_without_an_engine(client: Client, engine: FakeEngine) -> None:
    engine.status = EngineStatus("loading", "weights", 0.5)
    async with client(engine) as http:
        for stream in (False, True):
            response = await http.post(MESSAGES, json=asked(stream=stream))
            assert (response.status_code, response.json()["error"]["type"]) == (503, "overloaded_error")
            assert response.headers["retry-after"]
            check("ErrorResponse", response.json())


async def test_an_engine_that_is_lost(client: Client, engine: FakeEngine) -> None:
    async with client(engine) as http:
        engine.fail_after = 1
        events = events_of((await http.post(MESSAGES, json=asked(stream=True))).text)
        whole = await http.post(MESSAGES, json=asked())
        engine.fail_after = 0
        first = await http.post(MESSAGES, json=asked(stream=True))
    assert events[0]["type"] == "message_start"
    check("ErrorResponse", events[-1])
    assert events[-1]["error"]["type"] == "overloaded_error"
    assert [whole.status_code, first.status_code] == [503, 503]
    assert first.json()["error"]["type"] == "overloaded_error"


async def test_what_the_engine_refuses(client: Client, engine: FakeEngine) -> None:
    engine.refuse = "too much"
    async with client(engine) as http:
        for stream in (False, True):
            response = await http.post(MESSAGES, json=asked(stream=stream))
            assert (response.status_code, response.json()["error"]["message"]) == (400, "too much")


async def test_the_models(client: Client, engine: FakeEngine) -> None:
    async with client(engine) as http:
        listed = (await http.get("/v1/models", headers=VERSION)).json()
        one = (await http.get(f"/v1/models/{MODEL}:reasoning", headers=VERSION)).json()
        none = await http.get("/v1/models/claude", headers=VERSION)
        of_openai = (await http.get("/v1/models")).json()
    check("ListResponse_ModelInfo_", listed)
    assert [model["id"] for model in listed["data"]] == [MODEL, f"{MODEL}:standard", f"{MODEL}:reasoning"]
    assert one == listed["data"][2]
    assert (one["max_input_tokens"], one["created_at"][-1]) == (4096, "Z")
    assert (none.status_code, none.json()["error"]["type"]) == (404, "not_found_error")
    assert of_openai["object"] == "list"
