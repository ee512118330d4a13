"""vllm-router, smg and LiteLLM's proxy, each in front of two real servers: what goes through, what a loss costs."""

import json
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.real_server import RealServer
from tests.routers.routers import FOLDER, router, running, until

ROUTERS = ("vllm-router", "smg", "litellm")
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not (FOLDER / "smg").exists(), reason="the routers are not installed: make test-routers"),
    pytest.mark.timeout(1800),
]
CHAT = "/v1/chat/completions"
ASKED = {"model": "twogear-tiny", "messages": [{"role": "user", "content": "What is 17 + 25?"}], "temperature": 0}
MODES = ("standard", "reasoning")
PARAMETERS = {"type": "object", "properties": {"expression": {"type": "string"}}}
TOOLS = [{"type": "function", "function": {"name": "calculator", "parameters": PARAMETERS}}]
ENDLESS = {"reasoning_mode": "reasoning", "stream": True, "max_tokens": 100_000, "temperature": 1.0,
           "logit_bias": {"8": -100}, "ignore_eos": True, "thinking_token_budget": 99_000}  # fmt: skip
"""The tag that ends the thinking is never drawn, and the end of the turn is none."""
LONG = {**ENDLESS, "max_tokens": 20_000, "thinking_token_budget": 19_000}
"""Ten seconds by itself; the small model draws some thousands a second."""
MOST_STREAMS = 8
CUT_STREAM = {"vllm-router": "broken", "smg": "error", "litellm": "error"}
"""How a router ends the stream of a server that is gone; smg's `[DONE]` comes after the event that says so."""


@pytest.fixture(scope="module")
def servers() -> Iterator[list[str]]:
    with RealServer() as one, RealServer() as other:
        yield [one.url, other.url]


@pytest.fixture(scope="module", params=ROUTERS)
def client(
    request: pytest.FixtureRequest, servers: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    with router(request.param, servers, tmp_path_factory.mktemp(request.param)) as client:
        yield client


def said(response: httpx.Response) -> tuple[Any, ...]:
    assert response.status_code == httpx.codes.OK, response.text
    told = response.json()
    message = told["choices"][0]["message"]
    usage = told["usage"]
    return message["content"], message.get("reasoning_content"), usage["prompt_tokens"], usage["completion_tokens"]


def pieces(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))


@pytest.mark.parametrize("mode", MODES)
def test_both_modes_are_answered_as_by_a_server(client: httpx.Client, servers: list[str], mode: str) -> None:
    asked = {**ASKED, "reasoning_mode": mode}
    through = said(client.post(CHAT, json=asked))
    assert through == said(httpx.post(servers[0] + CHAT, json=asked))
    assert bool(through[1]) == (mode == "reasoning")


@pytest.mark.parametrize("mode", MODES)
def test_a_stream_says_what_the_whole_says(client: httpx.Client, mode: str) -> None:
    asked = {**ASKED, "reasoning_mode": mode}
    content, reasoning, *_ = said(client.post(CHAT, json=asked))
    with client.stream("POST", CHAT, json={**asked, "stream": True}) as response:
        lines = list(response.iter_lines())
    deltas = [one["delta"] for piece in pieces(iter(lines)) for one in piece["choices"]]
    assert "".join(one.get("content") or "" for one in deltas) == content
    assert "".join(one.get("reasoning_content") or "" for one in deltas) == (reasoning or "")
    assert [line for line in lines if line][-1] == "data: [DONE]"


@pytest.mark.parametrize("mode", MODES)
def test_a_tool_is_called(client: httpx.Client, mode: str) -> None:
    response = client.post(CHAT, json={**ASKED, "reasoning_mode": mode, "tools": TOOLS, "tool_choice": "required"})
    assert response.status_code == httpx.codes.OK, response.text
    (call,) = response.json()["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "calculator"
    json.loads(call["function"]["arguments"])


def test_a_misspelt_field_is_refused_in_our_words(client: httpx.Client) -> None:
    response = client.post(CHAT, json={**ASKED, "reasoning_mode": "nope"})
    assert response.status_code == httpx.codes.BAD_REQUEST
    assert "reasoning_mode" in response.text


def test_a_client_that_leaves_frees_the_engine(client: httpx.Client, servers: list[str]) -> None:
    with client.stream("POST", CHAT, json={**ASKED, **ENDLESS}) as response:
        assert response.status_code == httpx.codes.OK, response.read()
        lines = response.iter_lines()  # kept: httpx hangs up with the end of it
        next(lines)
        until(servers, 1)
    until(servers, 0)


@pytest.mark.parametrize("name", ROUTERS)
def test_one_of_two_is_killed_under_load(
    name: str, servers: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    with RealServer() as lost, router(name, [servers[0], lost.url], tmp_path_factory.mktemp(name)) as client:
        with ThreadPoolExecutor(MOST_STREAMS) as pool:
            streams: list[Future[str]] = []
            while running([lost.url]) < 1:
                assert len(streams) < MOST_STREAMS, "none of the streams came to this server"
                streams.append(pool.submit(_end_of_stream, client, len(streams)))
                until([servers[0], lost.url], len(streams))
            lost.process.send_signal(signal.SIGKILL)
            answers = [_short(client, number) for number in range(24)]
            ends = sorted(stream.result() for stream in streams)
        print(f"{name}: streams ended with {ends}, short requests with {answers}")
        assert ends.count("[DONE]") == len(streams) - 1  # the engine of the other goes on
        assert ends.count(CUT_STREAM[name]) == 1
        assert answers[-12:] == [httpx.codes.OK] * 12


def _end_of_stream(client: httpx.Client, number: int) -> str:
    """The last line of a long stream, or `broken`, or `error` where an event says so."""
    fields = {**ASKED, **LONG, "messages": [{"role": "user", "content": f"{number} What is 17 + 25?"}]}
    last, is_error = "", False
    try:
        with client.stream("POST", CHAT, json=fields, headers={"X-Session-ID": str(number)}) as response:
            for line in response.iter_lines():
                last = line.removeprefix("data: ") or last
                is_error |= '"error"' in last
    except httpx.TransportError:
        return "broken"
    return "error" if is_error else last


def _short(client: httpx.Client, number: int) -> int:
    fields = {**ASKED, "messages": [{"role": "user", "content": f"What is {number} + 25?"}]}
    try:
        return client.post(CHAT, json=fields, headers={"X-Session-ID": f"short {number}"}).status_code
    except httpx.TransportError:
        return 0
