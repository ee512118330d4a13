"""What clients may control: end the thinking of a running request, prefill answers, set priorities."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from chat_templates.format import ChatFormat
from server.app import create_app
from server.modes.profile import Profile
from server.settings import Settings
from tests.fake_engine import FakeEngine
from tests.server.conftest import HELLO, Client, always, body
from tests.server.controlled import close_thinking
from tests.server.test_http import error_of
from tests.server.test_launch import Running
from tests.server.test_streaming import events_of, gathered

CHAT = "/v1/chat/completions"


@pytest.fixture
def running(thinker: FakeEngine, profile: Profile, fmt: ChatFormat) -> Iterator[Running]:
    running = Running(thinker, profile, fmt)
    yield running
    running.server.should_exit = True
    running.thread.join()


def test_a_client_ends_the_thinking_of_its_running_request(running: Running) -> None:
    fields = {"reasoning_mode": "reasoning", "stream": True, "stream_options": {"include_usage": True}}
    closed = close_thinking(running.url, CHAT, body(**fields))
    head = {"id": closed.id, "object": "chat.completion.control"}
    assert closed.told == {**head, "action": "end_reasoning", "choices": [0]}
    assert (closed.over.status_code, error_of(closed.over)["code"]) == (404, "request_not_found")
    assert (closed.unknown.status_code, error_of(closed.unknown)["param"]) == (400, "action")
    (choice,) = gathered(events_of(closed.text))["choices"]
    assert (choice["content"], choice["reasoning_finish_reason"]) == ("forty", "stopped")
    assert choice["reasoning"].startswith("h")


@pytest.mark.parametrize("fields", [{}, {"action": "stop"}, {"action": 1}])
async def test_bad_control_requests(client: Client, fmt: ChatFormat, fields: dict[str, Any]) -> None:
    async with client(FakeEngine(always([fmt.end_of_turn_id]), (fmt.end_of_turn_id,))) as http:
        response = await http.post(f"{CHAT}/chatcmpl-1/control", json=fields)
    assert (response.status_code, error_of(response)["param"]) == (400, "action")


@pytest.mark.parametrize(
    ("message", "mode", "shown"),
    [
        ({"content": "It is"}, "standard", ("so\nfour", "")),
        ({"content": "It is"}, "reasoning", ("so\nfour", "")),
        ({"content": "", "reasoning_content": "2 and"}, "reasoning", ("four", "so")),
    ],
)
async def test_a_final_message_goes_on(
    client: Client, fmt: ChatFormat, message: dict[str, str], mode: str, shown: tuple[str, str]
) -> None:
    answer, reasoning = shown
    messages = [*HELLO, {"role": "assistant", **message}]
    ids = fmt.encode_text("so\n")
    if reasoning:
        ids = [*ids, fmt.think_end_id, *fmt.encode_text("\n\n")]
    engine = FakeEngine(always([*ids, *fmt.encode_text("four"), fmt.end_of_turn_id]), (fmt.end_of_turn_id,))
    async with client(engine) as http:
        asked = body(messages=messages, reasoning_mode=mode, continue_final_message=True)
        (choice,) = (await http.post(CHAT, json=asked)).json()["choices"]
        tokens = (await http.post("/tokenize", json=asked)).json()["tokens"]
    assert choice["message"]["content"] == answer
    assert choice["message"].get("reasoning", "") == reasoning
    (request,) = engine.seen
    assert request.prompt_ids == tokens
    assert fmt.decode(request.prompt_ids).endswith(message["content"] or message["reasoning_content"])
    assert choice.get("reasoning_finish_reason") == ("natural" if reasoning else None)


@pytest.mark.parametrize("mode", ["standard", "reasoning"])
async def test_without_a_generation_prompt_no_turn_is_opened(client: Client, fmt: ChatFormat, mode: str) -> None:
    engine = FakeEngine(always([*fmt.encode_text("x"), fmt.end_of_turn_id]), (fmt.end_of_turn_id,))
    async with client(engine) as http:
        asked = body(reasoning_mode=mode, add_generation_prompt=False)
        (choice,) = (await http.post(CHAT, json=asked)).json()["choices"]
    assert fmt.decode(engine.seen[0].prompt_ids, show_control=True) == "[|user|]\nHi[|endofturn|]\n"
    assert choice["message"]["content"] == "x"


async def test_priorities_with_the_servers_leave(fmt: ChatFormat, profile: Profile) -> None:
    engine = FakeEngine(always([fmt.end_of_turn_id]), (fmt.end_of_turn_id,))
    app = create_app(engine, Settings(allow_priority=True), profile, fmt)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://twogear") as http:
        for priority in (-3, 5, 0, None):
            response = await http.post(CHAT, json=body(priority=priority))
            assert response.status_code == 200, response.text
        await http.post("/v1/completions", json={"prompt": "a", "priority": 7})
        for thinking in (0, 20):
            asked = body(reasoning_mode="reasoning", thinking_token_budget=thinking, max_tokens=60)
            assert (await http.post(CHAT, json=asked)).status_code == 200
    # Three times as far apart: of requests with equal priority direct ones go first, then answers, then thoughts.
    assert [request.priority for request in engine.seen[:7]] == [-9, 15, 0, 0, 21, 1, 2]
