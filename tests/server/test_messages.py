"""Anthropic's `POST /v1/messages`: what is answered, whole and in events."""

import json
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import httpx
import jsonschema_rs
import pytest

from chat_templates.format import ChatFormat
from chat_templates.settings import DIRECT, THINKING
from server.api.common.sealed import unseal
from server.modes.profile import Profile
from tests.fake_engine import FakeEngine, script_of
from tests.server.anthropic import (
    CLOCK,
    COUNT,
    HELLO,
    MESSAGES,
    SCHEMA,
    WEATHER,
    asked,
    check,
    events_of,
    gathered,
    without_secrets,
)
from tests.server.conftest import MODEL, Client, always
from tests.server.controlled import close_thinking
from tests.server.test_launch import Running

ADAPTIVE = {"thinking": {"type": "adaptive"}}


def call_ids(fmt: ChatFormat, name: str, arguments: dict[str, Any]) -> list[int]:
    text = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return [fmt.tool_call_id, *fmt.encode_text(text), fmt.tool_call_end_id]


@pytest.fixture
def talker(fmt: ChatFormat) -> FakeEngine:
    """Says "83 é"; where thinking is open, thinks "38+45" first."""
    answer = [*fmt.encode_text("83 é"), fmt.end_of_turn_id]
    thinking = [*fmt.encode_text("38+45"), *fmt.close_thinking()]
    return FakeEngine(
        lambda prompt: iter(thinking + answer if fmt.is_thinking_open(prompt) else answer),
        (fmt.end_of_turn_id,),
        chunks=(1, 2),
    )


@pytest.fixture
def caller(fmt: ChatFormat) -> FakeEngine:
    """Says "Sure." and calls both tools; where thinking is open, thinks first, and calls the clock within."""
    calls = [*call_ids(fmt, "weather", {"city": "Zürich"}), *fmt.encode_text("\n"), *call_ids(fmt, "clock", {})]
    answer = [*fmt.encode_text("Sure.\n"), *calls, fmt.end_of_turn_id]
    thinking = [*fmt.encode_text("hm"), *call_ids(fmt, "clock", {"city": "in"}), *fmt.encode_text("so")]
    thinking += fmt.close_thinking()
    return FakeEngine(
        lambda prompt: iter(thinking + answer if fmt.is_thinking_open(prompt) else answer),
        (fmt.end_of_turn_id,),
        chunks=(3, 1, 7),
    )


async def post(client: Client, engine: FakeEngine, **fields: Any) -> dict[str, Any]:
    """The message; the stream of the same request adds up to the same."""
    async with client(engine) as http:
        whole = await http.post(MESSAGES, json=asked(**fields))
        streamed = await http.post(MESSAGES, json=asked(**fields, stream=True))
    assert whole.status_code == 200, whole.text
    message: dict[str, Any] = whole.json()
    check("Message", message)
    assert without_secrets(gathered(events_of(streamed.text))) == without_secrets(message)
    return message


async def test_a_message(client: Client, talker: FakeEngine, fmt: ChatFormat) -> None:
    message = await post(client, talker)
    assert message.pop("id").startswith("msg_")
    assert message == {
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": [{"type": "text", "text": "83 é", "citations": []}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "stop_details": None,
        "container": None,
        "usage": {
            "input_tokens": len(fmt.render(HELLO, DIRECT)),
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
            "output_tokens": len(fmt.encode_text("83 é")) + 1,
            "output_tokens_details": {"thinking_tokens": 0},
            "server_tool_use": None,
            "service_tier": "standard",
            "inference_geo": None,
        },
    }


@pytest.mark.parametrize(
    "how",
    [
        ADAPTIVE,
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        {"thinking": {"type": "enabled"}},
        {"reasoning_mode": "reasoning"},
        {"model": f"{MODEL}:reasoning"},
        {**ADAPTIVE, "output_config": {"effort": "low"}},
        {"thinking": {"type": "enabled", "budget_tokens": 1024}, "output_config": {"effort": "xhigh"}},
    ],
)
async def test_thinking(client: Client, talker: FakeEngine, fmt: ChatFormat, how: dict[str, Any]) -> None:
    message = await post(client, talker, **how)
    thinking, text = message["content"]
    assert (thinking["type"], thinking["thinking"]) == ("thinking", "38+45")
    assert unseal("thinking", thinking["signature"]) == "38+45"
    assert text["text"] == "83 é"
    assert talker.seen[0].prompt_ids == fmt.render(HELLO, THINKING)
    assert message["usage"]["output_tokens_details"]["thinking_tokens"] == len(fmt.encode_text("38+45\n"))
    assert message["reasoning_finish_reason"] == "natural"


@pytest.mark.parametrize("how", [{}, {"thinking": {"type": "disabled"}}, {"output_config": {"effort": "high"}}])
async def test_no_thinking(client: Client, talker: FakeEngine, how: dict[str, Any]) -> None:
    message = await post(client, talker, **how)
    assert [block["type"] for block in message["content"]] == ["text"]
    assert "reasoning_finish_reason" not in message


@pytest.mark.parametrize("display", ["summarized", "updates"])
async def test_thinking_is_shown_in_either_way(client: Client, talker: FakeEngine, display: str) -> None:
    thinking, _ = (await post(client, talker, thinking={"type": "adaptive", "display": display}))["content"]
    assert thinking["thinking"] == "38+45"


async def test_thinking_that_is_left_out_stays_in_its_signature(client: Client, talker: FakeEngine) -> None:
    message = await post(client, talker, thinking={"type": "adaptive", "display": "omitted"})
    thinking, text = message["content"]
    assert (thinking["thinking"], unseal("thinking", thinking["signature"])) == ("", "38+45")
    assert text["text"] == "83 é"


@pytest.mark.parametrize(
    "how",
    [
        {"thinking": {"type": "enabled", "budget_tokens": 7}},
        {**ADAPTIVE, "thinking_token_budget": 7},
        {"thinking": {"type": "enabled", "budget_tokens": 7}, "thinking_token_budget": 7},
    ],
)
async def test_a_budget_is_exact(client: Client, fmt: ChatFormat, how: dict[str, Any]) -> None:
    script = script_of([*fmt.encode_text("on and on " * 20), *fmt.encode_text("!")], len(fmt.render(HELLO, THINKING)))
    message = await post(client, FakeEngine(script, (fmt.end_of_turn_id,)), **how, max_tokens=60)
    assert message["usage"]["output_tokens_details"]["thinking_tokens"] == 7
    assert (message["reasoning_finish_reason"], message["stop_reason"]) == ("budget", "max_tokens")


@pytest.mark.parametrize(("effort", "tokens"), [("low", 20), ("medium", 50), ("max", 73)])
async def test_an_effort_is_a_share_of_the_limit(client: Client, fmt: ChatFormat, effort: str, tokens: int) -> None:
    """Of 100 tokens a quarter is kept for the answer, and two close the thinking."""
    script = script_of(fmt.encode_text("on and on " * 90), len(fmt.render(HELLO, THINKING)))
    engine = FakeEngine(script, (fmt.end_of_turn_id,))
    message = await post(client, engine, **ADAPTIVE, output_config={"effort": effort}, max_tokens=100)
    assert message["usage"]["output_tokens_details"]["thinking_tokens"] == tokens


async def test_calls(client: Client, caller: FakeEngine, fmt: ChatFormat) -> None:
    message = await post(client, caller, tools=[WEATHER, CLOCK])
    text, first, second = message["content"]
    assert (text["text"], message["stop_reason"]) == ("Sure.", "tool_use")
    assert first["id"].startswith("toolu_")
    assert first == {
        "type": "tool_use",
        "id": first["id"],
        "name": "weather",
        "input": {"city": "Zürich"},
        "caller": {"type": "direct"},
    }
    assert (second["name"], second["input"]) == ("clock", {})
    shown = fmt.decode(caller.seen[0].prompt_ids, show_control=True)
    assert '"description": "The weather of a city"' in shown
    assert '"required": ["city"]' in shown


async def test_a_call_within_the_thinking(client: Client, caller: FakeEngine) -> None:
    message = await post(client, caller, tools=[WEATHER, CLOCK], **ADAPTIVE)
    kinds = [block["type"] for block in message["content"]]
    assert kinds == ["thinking", "tool_use", "thinking", "text", "tool_use", "tool_use"]
    thoughts = [block["thinking"] for block in message["content"] if block["type"] == "thinking"]
    assert "".join(thoughts) == "hmso"


async def test_one_call_at_most(client: Client, caller: FakeEngine) -> None:
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    message = await post(client, caller, tools=[WEATHER, CLOCK], tool_choice=choice)
    assert [block["type"] for block in message["content"]] == ["text", "tool_use"]


@pytest.mark.parametrize(
    ("choice", "bound"),
    [
        (None, False),
        ({"type": "auto"}, False),
        ({"type": "none"}, False),
        ({"type": "any"}, True),
        ({"type": "tool", "name": "clock"}, True),
    ],
)
async def test_tool_choice(
    client: Client, talker: FakeEngine, choice: dict[str, Any] | None, *, bound: bool, fmt: ChatFormat
) -> None:
    await post(client, talker, tools=[WEATHER, CLOCK], tool_choice=choice)
    sampling = talker.seen[0].sampling
    grammar = sampling.grammar or ""
    assert bool(grammar) == bound
    assert ("weather" in grammar) == (choice == {"type": "any"})
    assert (fmt.tool_call_id in (sampling.logit_bias or {})) == (choice == {"type": "none"})


async def test_a_call_that_the_limit_cuts_off(client: Client, fmt: ChatFormat) -> None:
    arguments = '{"city": "Rome", "days": [1, 2], "more": "ab'
    ids = [fmt.tool_call_id, *fmt.encode_text('{"name": "weather", "arguments": ' + arguments)]
    engine = FakeEngine(always([*ids, *fmt.encode_text("c" * 50)]), (fmt.end_of_turn_id,))
    async with client(engine) as http:
        fields = asked(tools=[WEATHER], max_tokens=len(ids))
        message = (await http.post(MESSAGES, json=fields)).json()
        events = events_of((await http.post(MESSAGES, json={**fields, "stream": True})).text)
    (call,) = message["content"]
    assert (call["input"], message["stop_reason"]) == ({"city": "Rome", "days": [1, 2]}, "max_tokens")
    parts = [event["delta"]["partial_json"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(parts) == arguments


async def test_ends_of_lines_are_escaped_in_events(client: Client, fmt: ChatFormat) -> None:
    text = "a\u2028b\u0085c\u2029"
    engine = FakeEngine(always([*fmt.encode_text(text), fmt.end_of_turn_id]), (fmt.end_of_turn_id,))
    async with client(engine) as http:
        streamed = (await http.post(MESSAGES, json=asked(stream=True))).text
    assert gathered(events_of(streamed))["content"][0]["text"] == text
    assert len(streamed.splitlines()) == streamed.count("\n")


async def test_input_that_is_no_json(client: Client, fmt: ChatFormat) -> None:
    ids = [fmt.tool_call_id, *fmt.encode_text('{"name": "weather", "arguments": {city: 5}}'), fmt.tool_call_end_id]
    engine = FakeEngine(always([*ids, fmt.end_of_turn_id]), (fmt.end_of_turn_id,))
    async with client(engine) as http:
        message = (await http.post(MESSAGES, json=asked(tools=[WEATHER]))).json()
    assert message["content"][0]["input"] == {"INVALID_JSON": "{city: 5}"}


async def test_stop_sequences(client: Client, fmt: ChatFormat) -> None:
    engine = FakeEngine(always([*fmt.encode_text("one END two"), fmt.end_of_turn_id]), (fmt.end_of_turn_id,))
    message = await post(client, engine, stop_sequences=["two", "END"])
    assert message["content"][0]["text"] == "one "
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", "END")
    message = await post(client, engine, stop_sequences=["three"])
    assert (message["stop_reason"], message["stop_sequence"]) == ("end_turn", None)


async def test_the_limit(client: Client, talker: FakeEngine) -> None:
    message = await post(client, talker, max_tokens=1)
    assert (message["stop_reason"], message["usage"]["output_tokens"]) == ("max_tokens", 1)


async def test_a_limit_beyond_the_context(client: Client, fmt: ChatFormat) -> None:
    engine = FakeEngine(always(fmt.encode_text("on and on " * 50)), (fmt.end_of_turn_id,), max_context=64)
    message = await post(client, engine, max_tokens=1_000_000)
    assert message["stop_reason"] == "model_context_window_exceeded"
    assert message["usage"]["input_tokens"] + message["usage"]["output_tokens"] == 64


async def test_a_limit_of_nothing_reads_the_prompt(client: Client, talker: FakeEngine, fmt: ChatFormat) -> None:
    message = await post(client, talker, max_tokens=0)
    assert (message["content"], message["stop_reason"]) == ([], "max_tokens")
    assert message["usage"]["output_tokens"] == 0
    assert talker.seen[0].prompt_ids == fmt.render(HELLO, DIRECT)


@pytest.mark.parametrize(
    "fields",
    [
        {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
        {"output_format": {"type": "json_schema", "schema": SCHEMA}},
        {
            "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
            "output_format": {"type": "json_schema", "schema": SCHEMA},
        },
    ],
)
async def test_the_form_of_the_answer(client: Client, fmt: ChatFormat, fields: dict[str, Any]) -> None:
    engine = FakeEngine(always([*fmt.encode_text('{"city": "Rome"}'), fmt.end_of_turn_id]), (fmt.end_of_turn_id,))
    message = await post(client, engine, **fields)
    assert message["content"][0]["text"] == '{"city": "Rome"}'
    assert "city" in (engine.seen[0].sampling.grammar or "")


async def test_sampling(client: Client, talker: FakeEngine) -> None:
    await post(client, talker, temperature=0.25, top_p=0.5, top_k=7)
    sampling = talker.seen[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.25, 0.5, 7)
    await post(client, talker, top_k=-1)
    assert talker.seen[-1].sampling.top_k == 0


async def test_what_was_cached_is_told_apart(client: Client, talker: FakeEngine, fmt: ChatFormat) -> None:
    talker.cached_tokens = 5
    usage = (await post(client, talker))["usage"]
    assert usage["cache_read_input_tokens"] == 5
    async with client(talker) as http:
        counted = (await http.post(COUNT, json=asked())).json()
    assert counted == {"input_tokens": usage["input_tokens"] + 5}


async def test_what_means_nothing_here_is_taken(client: Client, talker: FakeEngine) -> None:
    mark = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    message = await post(
        client,
        talker,
        **mark,
        system=[{"type": "text", "text": "Be brief.", **mark}],
        messages=[{"role": "user", "content": [{"type": "text", "text": "Hi", "citations": None, **mark}]}],
        tools=[{**WEATHER, **mark, "eager_input_streaming": True, "input_examples": [{"city": "Rome"}]}],
        metadata={"user_id": "me"},
        service_tier="auto",
        inference_geo="eu",
        speed="standard",
        mcp_servers=[],
        container=None,
    )
    assert message["stop_reason"] == "end_turn"


async def test_a_context_that_is_to_be_managed(client: Client, talker: FakeEngine) -> None:
    edits = {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}
    async with client(talker) as http:
        whole = (await http.post(MESSAGES, json=asked(context_management=edits))).json()
        streamed = await http.post(MESSAGES, json=asked(context_management=edits, stream=True))
    assert whole["context_management"] == {"applied_edits": []}
    *_, delta, _ = events_of(streamed.text)
    assert delta["context_management"] == {"applied_edits": []}


async def test_the_order_of_events(client: Client, talker: FakeEngine) -> None:
    async with client(talker) as http:
        response = await http.post(MESSAGES, json=asked(**ADAPTIVE, stream=True))
    assert response.headers["content-type"].startswith("text/event-stream")
    events = events_of(response.text)
    names = [event["type"] for event in events]
    assert names[:3] == ["message_start", "ping", "content_block_start"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    (end,) = (index for index, event in enumerate(events) if event.get("delta", {}).get("type") == "signature_delta")
    assert names[end : end + 3] == ["content_block_delta", "content_block_stop", "content_block_start"]
    assert events[0]["message"]["usage"]["input_tokens"] > 0


@pytest.mark.parametrize("fields", [{}, ADAPTIVE, {"max_tokens": 1}, {"messages": []}])
async def test_the_openapi_document(client: Client, caller: FakeEngine, fields: dict[str, Any]) -> None:
    async with client(caller) as http:
        document = (await http.get("/openapi.json")).json()
        responses = document["paths"][MESSAGES]["post"]["responses"]
        request = asked(**fields) if "messages" in fields else asked(**fields, tools=[WEATHER, CLOCK])
        whole = await http.post(MESSAGES, json=request)
        streamed = await http.post(MESSAGES, json={**request, "stream": True})
    schema = responses[str(whole.status_code)]["content"]["application/json"]["schema"]
    jsonschema_rs.validate({**document, **schema}, whole.json())
    assert streamed.status_code == whole.status_code
    of_events = responses["200"]["content"]["text/event-stream"]["x-event"]
    validator = jsonschema_rs.validator_for({**document, **of_events})
    for event in events_of(streamed.text) if streamed.status_code == 200 else []:
        validator.validate(event)


async def test_hidden_thinking_shows_that_the_stream_lives(client: Client, fmt: ChatFormat) -> None:
    thinking = [*fmt.encode_text("hm ") * 200, *fmt.close_thinking()]
    engine = FakeEngine(always([*thinking, *fmt.encode_text("So."), fmt.end_of_turn_id]), (fmt.end_of_turn_id,))
    fields = asked(thinking={"type": "adaptive", "display": "omitted"}, max_tokens=1000, stream=True)
    async with client(engine) as http:
        events = events_of((await http.post(MESSAGES, json=fields)).text)
    assert [event["type"] for event in events].count("ping") > 2
    assert gathered(events)["content"][1]["text"] == "So."


@pytest.fixture
def running(thinker: FakeEngine, profile: Profile, fmt: ChatFormat) -> Iterator[Running]:
    running = Running(thinker, profile, fmt)
    yield running
    running.server.should_exit = True
    running.thread.join()


def test_a_client_ends_the_thinking(running: Running) -> None:
    closed = close_thinking(running.url, MESSAGES, asked(**ADAPTIVE, stream=True, max_tokens=50_000))
    assert closed.told == {"id": closed.id, "type": "message_control", "action": "end_reasoning", "closed": True}
    assert (closed.over.status_code, closed.over.json()["error"]["type"]) == (404, "not_found_error")
    assert (closed.unknown.status_code, closed.unknown.json()["error"]["type"]) == (400, "invalid_request_error")
    message = gathered(events_of(closed.text))
    assert message["content"][1]["text"] == "forty"
    assert message["reasoning_finish_reason"] == "stopped"


def test_the_engine_stops_when_the_client_leaves(running: Running, thinker: FakeEngine) -> None:
    for stream in (True, False):
        body = json.dumps(asked(**ADAPTIVE, stream=stream, max_tokens=50_000))
        client = HTTPConnection(running.url.removeprefix("http://"))
        client.request("POST", MESSAGES, body, {"Content-Type": "application/json"})
        _wait_for(running, 1)
        client.close()
        _wait_for(running, 0)
    assert len(thinker.aborted) == 2


def _wait_for(running: Running, requests: int) -> None:
    gauge = f'twogear_requests_running{{mode="reasoning"}} {requests}.0'
    while gauge not in httpx.get(f"{running.url}/metrics").text:
        time.sleep(0.01)
