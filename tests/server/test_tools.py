"""Tools with every form of `tool_choice`, and the form of calls, whole and streamed."""

import json
from typing import Any

import pytest

from chat_templates.format import ChatFormat
from chat_templates.settings import DIRECT
from tests.fake_engine import FakeEngine
from tests.server.conftest import HELLO, Client, always, body
from tests.server.test_http import error_of
from tests.server.test_streaming import events_of

CHAT = "/v1/chat/completions"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def tool(name: str, **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": SCHEMA, **function}}


WEATHER, CLOCK = tool("weather", description="The weather of a city"), tool("clock")
NAMED = {"type": "function", "function": {"name": "clock"}}


def call_ids(fmt: ChatFormat, name: str, arguments: dict[str, Any]) -> list[int]:
    text = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return [fmt.tool_call_id, *fmt.encode_text(text), fmt.tool_call_end_id]


@pytest.fixture
def caller(fmt: ChatFormat) -> FakeEngine:
    """Says "Sure." and calls both tools; where thinking is open, thinks first, and calls the clock within."""
    calls = [*call_ids(fmt, "weather", {"city": "Zürich"}), *fmt.encode_text("\n"), *call_ids(fmt, "clock", {})]
    answer = [*fmt.encode_text("Sure.\n"), *calls, fmt.end_of_turn_id]
    thinking = [*fmt.encode_text("hm"), *call_ids(fmt, "clock", {"city": "in"}), *fmt.close_thinking()]
    return FakeEngine(
        lambda prompt: iter(thinking + answer if fmt.is_thinking_open(prompt) else answer),
        (fmt.end_of_turn_id,),
        chunks=(3, 1, 7),
    )


async def post(client: Client, engine: FakeEngine, **fields: Any) -> dict[str, Any]:
    async with client(engine) as http:
        response = await http.post(CHAT, json=body(**fields))
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    return dict(choice)


async def test_parallel_calls(client: Client, caller: FakeEngine, fmt: ChatFormat) -> None:
    choice = await post(client, caller, tools=[WEATHER, CLOCK])
    message = choice["message"]
    assert (message["content"], choice["finish_reason"]) == ("Sure.", "tool_calls")
    first, second = message["tool_calls"]
    assert first["function"] == {"name": "weather", "arguments": '{"city": "Zürich"}'}
    assert second["function"] == {"name": "clock", "arguments": "{}"}
    assert first["id"] != second["id"]
    assert {first["type"], second["type"]} == {"function"}
    assert caller.seen[0].prompt_ids == fmt.render(HELLO, DIRECT, [WEATHER, CLOCK])
    assert caller.seen[0].sampling.grammar is None


async def test_calls_within_the_thinking_are_not_lost(client: Client, caller: FakeEngine) -> None:
    choice = await post(client, caller, tools=[WEATHER, CLOCK], reasoning_mode="reasoning", max_tokens=400)
    arguments = [call["function"]["arguments"] for call in choice["message"]["tool_calls"]]
    assert arguments == ['{"city": "in"}', '{"city": "Zürich"}', "{}"]
    assert choice["message"]["reasoning"] == "hm"


@pytest.mark.parametrize("mode", ["standard", "reasoning"])
async def test_without_parallel_calls_the_first_is_the_last(client: Client, caller: FakeEngine, mode: str) -> None:
    choice = await post(
        client, caller, tools=[WEATHER, CLOCK], parallel_tool_calls=False, reasoning_mode=mode, max_tokens=400
    )
    assert len(choice["message"]["tool_calls"]) == 1
    assert choice["finish_reason"] == "tool_calls"
    assert len(caller.aborted) == 1


async def test_a_stream_of_calls(client: Client, caller: FakeEngine) -> None:
    async with client(caller) as http:
        response = await http.post(CHAT, json=body(tools=[WEATHER, CLOCK], stream=True))
    *chunks, _ = events_of(response.text)
    deltas = [call for chunk in chunks for call in chunk["choices"][0]["delta"].get("tool_calls", [])]
    starts = [delta for delta in deltas if "id" in delta]
    assert [(delta["index"], delta["function"]["name"]) for delta in starts] == [(0, "weather"), (1, "clock")]
    pieces = [delta["function"]["arguments"] for delta in deltas if delta["index"] == 0]
    assert "".join(pieces) == '{"city": "Zürich"}'
    assert len(pieces) > 2  # not only when the call is whole
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("fields", [{}, {"parallel_tool_calls": False}, {"stop": "nowhere"}])
async def test_a_call_that_is_cut_off_ends_with_length(
    client: Client, caller: FakeEngine, fmt: ChatFormat, fields: dict[str, Any]
) -> None:
    whole = [*fmt.encode_text("Sure.\n"), *call_ids(fmt, "weather", {"city": "Zürich"})]
    choice = await post(client, caller, tools=[WEATHER, CLOCK], max_tokens=len(whole) - 5, **fields)
    (call,) = choice["message"]["tool_calls"]
    assert not call["function"]["arguments"].endswith("}")
    assert choice["finish_reason"] == "length"


async def test_none_describes_tools_and_forbids_calls(client: Client, caller: FakeEngine, fmt: ChatFormat) -> None:
    choice = await post(client, caller, tools=[WEATHER], tool_choice="none", logit_bias={"5": 1})
    assert "tool_calls" not in choice["message"]
    (request,) = caller.seen
    assert request.prompt_ids == fmt.render(HELLO, DIRECT, [WEATHER])
    assert request.sampling.logit_bias == {5: 1, fmt.tool_call_id: -100}


@pytest.mark.parametrize(("choice", "names"), [("required", {"weather", "clock"}), (NAMED, {"clock"})])
async def test_a_forced_call_is_a_grammar(
    client: Client, caller: FakeEngine, fmt: ChatFormat, choice: Any, names: set[str]
) -> None:
    await post(client, caller, tools=[WEATHER, CLOCK], tool_choice=choice)
    grammar = caller.seen[0].sampling.grammar
    assert grammar is not None
    assert grammar.startswith("start: calls\n")
    assert f"<[{fmt.tool_call_id}]>" in grammar
    assert {name for name in ("weather", "clock") if f'\\"{name}\\"' in grammar} == names


async def test_a_tool_that_is_named_is_called_once(client: Client, caller: FakeEngine) -> None:
    for choice, several in (("required", True), (NAMED, False)):
        answer = await post(client, caller, tools=[WEATHER, CLOCK], tool_choice=choice)
        assert (len(answer["message"]["tool_calls"]) > 1) == several
        assert ("call)*" in (caller.seen[-1].sampling.grammar or "")) == several
        assert answer["finish_reason"] == ("tool_calls" if several else "stop")  # as OpenAI


async def test_a_forced_call_does_not_bind_the_thinking(client: Client, caller: FakeEngine) -> None:
    choice = await post(
        client, caller, tools=[CLOCK], tool_choice="required", reasoning_mode="reasoning", max_tokens=400
    )
    thinking, answer = (request.sampling.grammar for request in caller.seen)
    assert thinking is None
    assert answer is not None
    assert '"city": "in"' in choice["message"]["reasoning"]  # no call: only the answer may hold the forced one


async def test_a_tool_loop_renders_calls_and_results(client: Client, caller: FakeEngine, fmt: ChatFormat) -> None:
    first = await post(client, caller, tools=[WEATHER, CLOCK])
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": f"result {index}"}
        for index, call in enumerate(first["message"]["tool_calls"])
    ]
    messages = [*HELLO, first["message"], *results]
    await post(client, caller, messages=messages, tools=[WEATHER, CLOCK])
    one, two = (request.prompt_ids for request in caller.seen)
    text = fmt.decode(two, show_control=True)
    assert '<tool_call>{"name": "weather", "arguments": {"city": "Zürich"}}</tool_call>' in text
    assert '<tool_result>{"result": "result 1"}</tool_result>' in text
    assert two[: len(one)] == one  # the pages of the first turn are found again


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": {}}, "tools"),
        ({"tools": ["f"]}, "tools[0]"),
        ({"tools": [{"type": "web", "function": {"name": "f"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [tool("a b")]}, "tools[0].function.name"),
        ({"tools": [tool("a" * 65)]}, "tools[0].function.name"),
        ({"tools": [CLOCK, tool("f", parameters=[])]}, "tools[1].function.parameters"),
        ({"tools": [CLOCK] * 257}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": NAMED}, "tool_choice"),
        ({"tools": [CLOCK], "tool_choice": "always"}, "tool_choice"),
        ({"tools": [CLOCK], "tool_choice": 3}, "tool_choice"),
        ({"tools": [CLOCK], "tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"tools": [WEATHER], "tool_choice": NAMED}, "tool_choice.function.name"),
        ({"tools": [CLOCK], "tool_choice": "required", "ignore_eos": True}, "ignore_eos"),
        (
            {"tools": [tool("f", parameters={"properties": 3})], "tool_choice": "required"},
            "tools[0].function.parameters",
        ),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": [3]}]}, "messages[0].tool_calls[0]"),
    ],
)
async def test_a_bad_field_is_named(client: Client, caller: FakeEngine, fields: dict[str, Any], param: str) -> None:
    async with client(caller) as http:
        response = await http.post(CHAT, json=body(**fields))
    assert (response.status_code, error_of(response)["param"]) == (400, param)
    assert not caller.seen


async def test_tools_that_nothing_calls_are_free(client: Client, fmt: ChatFormat) -> None:
    engine = FakeEngine(always([*fmt.encode_text("Hello"), fmt.end_of_turn_id]), (fmt.end_of_turn_id,))
    choice = await post(client, engine, tools=[CLOCK])
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Hello", "stop")
