"""A stream has the same content as the plain response, however tokens are split, and ends when its client leaves."""

import asyncio
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_templates.format import ChatFormat
from chat_templates.settings import THINKING
from tests.fake_engine import FakeEngine, script_of
from tests.server.conftest import HELLO, Client, body
from tests.styles import STYLES

CHAT = "/v1/chat/completions"


def events_of(text: str) -> list[Any]:
    """The stream's events; the last is "[DONE]" where it ended well."""
    assert text.endswith("\n\n")
    data = [event.removeprefix("data: ") for event in text.removesuffix("\n\n").split("\n\n")]
    return [event if event == "[DONE]" else orjson.loads(event) for event in data]


def gathered(events: list[Any]) -> dict[str, Any]:
    """The plain response that a stream with usage adds up to."""
    *chunks, usage, done = events
    assert done == "[DONE]"
    assert usage["choices"] == []
    assert all(chunk["usage"] is None for chunk in chunks)
    parts: dict[int, list[dict[str, Any]]] = {}
    for chunk in chunks:
        (choice,) = chunk["choices"]
        parts.setdefault(choice["index"], []).append(choice)
    choices = [_joined(parts[index]) for index in sorted(parts)]
    return {"choices": choices, "usage": usage["usage"], "prompt": chunks[0].get("prompt_token_ids")}


def _joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    assert parts[0]["delta"] == {"role": "assistant", "content": ""}
    assert all(part["finish_reason"] is None for part in parts[:-1])
    texts = {name: "".join(part["delta"].get(name, "") for part in parts) for name in TEXT_FIELDS}
    calls: list[dict[str, Any]] = []
    for part in parts:
        for delta in part["delta"].get("tool_calls", []):
            if "id" in delta:
                assert delta["index"] == len(calls)
                assert (delta["type"], delta["function"]["arguments"]) == ("function", "")
                calls.append({"name": delta["function"]["name"], "arguments": ""})
            else:
                calls[delta["index"]]["arguments"] += delta["function"]["arguments"]
    logprobs: dict[str, list[Any]] | None = None
    for part in parts:
        for name, entries in (part["logprobs"] or {}).items():
            logprobs = logprobs or {}
            logprobs[name] = logprobs.get(name, []) + (entries or [])
    ids = [token_id for part in parts for token_id in part.get("token_ids", [])]
    return {**texts, **_end(parts[-1]), "logprobs": logprobs, "calls": calls, "ids": ids}


def plain(response: dict[str, Any]) -> dict[str, Any]:
    """The same of a response that was not streamed."""
    choices = []
    for choice in response["choices"]:
        texts = {name: choice["message"].get(name) or "" for name in TEXT_FIELDS}
        calls = [call["function"] for call in choice["message"].get("tool_calls", [])]
        logprobs = {name: entries or [] for name, entries in (choice["logprobs"] or {}).items()}
        logprobs_or_none = logprobs if any(logprobs.values()) else None
        ids = choice.get("token_ids", [])
        choices.append({**texts, **_end(choice), "logprobs": logprobs_or_none, "calls": calls, "ids": ids})
    return {"choices": choices, "usage": response["usage"], "prompt": response.get("prompt_token_ids")}


def _end(choice: dict[str, Any]) -> dict[str, Any]:
    return {name: choice.get(name) for name in ("finish_reason", "reasoning_finish_reason")}


TEXT_FIELDS = ("content", "reasoning", "reasoning_content")
CALL = '{"name": "f", "arguments": {"a": "é}"}}'
TOOLS = [{"type": "function", "function": {"name": "f"}}]
TEXTS = st.one_of(
    st.text(max_size=6),
    st.sampled_from(["é", "😀", "\n", "\n\n", "</think>", "<think>", "<tool_call>", CALL, CALL]),
)


@st.composite
def generations(draw: st.DrawFn, fmt: ChatFormat) -> list[int]:
    """What a model might write: text, broken characters, tags in any order, ends of turn."""
    controls = st.sampled_from(sorted(fmt.control_ids)).map(lambda token_id: [token_id])
    call = st.just([fmt.tool_call_id, *fmt.encode_text(CALL), fmt.tool_call_end_id])
    texts = TEXTS.map(fmt.encode_text)
    parts = draw(st.lists(st.one_of(texts, st.integers(0, 600).map(lambda n: [n]), controls, call)))
    return [token_id for part in parts for token_id in part] + [fmt.end_of_turn_id]


@given(data=st.data())
def test_streaming_equals_not_streaming(client: Client, fmt: ChatFormat, data: st.DataObject) -> None:
    ids = data.draw(generations(fmt))
    mode = data.draw(st.sampled_from(list(STYLES)))
    fields: dict[str, Any] = data.draw(
        st.fixed_dictionaries(
            {"max_tokens": st.integers(1, 80)},
            optional={
                "thinking_token_budget": st.integers(0, 40),
                "stop": st.lists(st.text(min_size=1, max_size=2), max_size=2),
                "stop_token_ids": st.just([fmt.encode_text("a")[0]]),
                "min_tokens": st.just(1),
                "ignore_eos": st.booleans(),
                "n": st.integers(1, 3),
            },
        )
    )
    if data.draw(st.booleans()):
        fields |= {"tools": TOOLS, "parallel_tool_calls": data.draw(st.booleans())}
    if data.draw(st.booleans()):
        fields |= {"logprobs": True, "top_logprobs": 2, "reasoning_logprobs": data.draw(st.booleans())}
    if data.draw(st.booleans()):
        fields["return_token_ids"] = True
    chunks = [data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)) for _ in range(2)]

    async def both() -> tuple[dict[str, Any], dict[str, Any]]:
        asked = body(reasoning_mode=mode, **fields)
        script = script_of(ids, len(fmt.render(HELLO, STYLES[mode], fields.get("tools", ()))))
        engines = [FakeEngine(script, (fmt.end_of_turn_id,), chunks=sizes) for sizes in chunks]
        async with client(engines[0]) as http:
            whole = await http.post(CHAT, json=asked)
        async with client(engines[1]) as http:
            streamed = await http.post(CHAT, json={**asked, "stream": True, "stream_options": {"include_usage": True}})
        return plain(whole.json()), gathered(events_of(streamed.text))

    whole, streamed = asyncio.run(both())
    assert streamed == whole
    usage = whole["usage"]
    n = fields.get("n", 1)
    assert len(whole["choices"]) == n
    for choice in whole["choices"]:
        assert len(choice["calls"]) <= (100 if fields.get("parallel_tool_calls") else 1 if "tools" in fields else 0)
    assert usage["completion_tokens"] <= n * fields["max_tokens"]
    if "return_token_ids" in fields:
        assert whole["prompt"] == fmt.render(HELLO, STYLES[mode], fields.get("tools", ()))
        assert sum(len(choice["ids"]) for choice in whole["choices"]) == usage["completion_tokens"]
    reasoning = usage["completion_tokens_details"]["reasoning_tokens"]
    assert reasoning <= n * fields.get("thinking_token_budget", reasoning)
    if mode == "standard":
        assert ([choice["reasoning"] for choice in whole["choices"]], reasoning) == ([""] * n, 0)


@pytest.mark.parametrize("fields", [{}, {"thinking_token_budget": 3}, {"thinking_token_budget": 0}])
async def test_reasoning_tokens_are_those_before_the_end_tag(
    client: Client, fmt: ChatFormat, fields: dict[str, int]
) -> None:
    ids = [*fmt.encode_text("so é"), *fmt.close_thinking(), *fmt.encode_text("it é"), fmt.end_of_turn_id]
    engine = FakeEngine(script_of(ids, len(fmt.render(HELLO, THINKING))), (fmt.end_of_turn_id,))
    async with client(engine) as http:
        asked = body(reasoning_mode="reasoning", return_token_ids=True, max_tokens=60, **fields)
        result = (await http.post(CHAT, json=asked)).json()
    (choice,) = result["choices"]
    generated = choice["token_ids"]
    thought = generated.index(fmt.think_end_id)
    assert thought == result["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert thought <= fields.get("thinking_token_budget", thought)
    assert len(generated) == result["usage"]["completion_tokens"]
    assert fmt.decode(generated[:thought]).strip("\n") == choice["message"]["reasoning"]
    assert fmt.decode(generated[thought:]).strip("\n") == choice["message"]["content"].strip("\n")


async def test_a_stream_without_usage_has_no_usage(client: Client, fmt: ChatFormat) -> None:
    engine = FakeEngine(lambda _: iter([*fmt.encode_text("ab"), fmt.end_of_turn_id]), (fmt.end_of_turn_id,))
    async with client(engine) as http:
        response = await http.post(CHAT, json=body(stream=True))
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, done = events_of(response.text)
    assert done == "[DONE]"
    assert all("usage" not in chunk for chunk in chunks)
    assert len({chunk["id"] for chunk in chunks}) == 1


async def test_an_error_in_the_middle_is_an_event_and_the_end(client: Client, fmt: ChatFormat) -> None:
    engine = FakeEngine(lambda _: iter(fmt.encode_text("abcdef")), (fmt.end_of_turn_id,), fail_after=2)
    async with client(engine) as http:
        response = await http.post(CHAT, json=body(stream=True))
    assert response.status_code == 200
    *_, last = events_of(response.text)
    assert set(last["error"]) == {"message", "type", "param", "code"}
    assert "ngine lost" in last["error"]["message"]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("mode", "n"), [("standard", 1), ("reasoning", 1), ("reasoning", 3)])
async def test_a_client_that_leaves_ends_all_generations(
    client: Client, fmt: ChatFormat, stream: bool, mode: str, n: int
) -> None:
    steps = 0
    generating, never = asyncio.Event(), asyncio.Event()

    async def step() -> None:
        nonlocal steps
        steps += 1
        if steps == 2 * n:  # each choice has a token, in reasoning mode one of its thinking
            generating.set()
        if steps > n:
            await never.wait()

    engine = FakeEngine(lambda _: iter(fmt.encode_text("a") * 100), (fmt.end_of_turn_id,), step=step)
    async with client(engine) as http:
        app = http._transport.app  # type: ignore[attr-defined] # the client that leaves speaks ASGI itself
        request = orjson.dumps(body(stream=stream, reasoning_mode=mode, n=n))
        sent: list[dict[str, Any]] = []
        inbox = [{"type": "http.request", "body": request}]

        async def receive() -> dict[str, Any]:
            if inbox:
                return inbox.pop()
            await generating.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": CHAT, "headers": [], "query_string": b""}
        await app(scope, receive, send)
        assert sorted(engine.aborted) == sorted(request.request_id for request in engine.seen)
        assert len(engine.seen) == n
        assert app.state.serving.running == 0
        metrics = (await http.get("/metrics")).text
    assert f'twogear_requests_total{{mode="{mode}",outcome="cancelled"}} 1.0' in metrics
    kind = "reasoning" if mode == "reasoning" else "answer"
    assert f'twogear_tokens_total{{kind="{kind}",mode="{mode}"}} {n}.0' in metrics
