"""What the log-probabilities of a response may take is bounded before anything is generated."""

import asyncio
from typing import Any

import httpx
import pytest

from chat_templates.format import ChatFormat
from server.app import create_app
from server.core.events import entry_bytes
from server.modes.profile import Profile
from server.settings import Settings
from tests.fake_engine import FakeEngine
from tests.server.conftest import MODEL, Client, always, body
from tests.server.test_http import error_of

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
FULL = 131_072  # tokens of context


@pytest.fixture
def engine(fmt: ChatFormat) -> FakeEngine:
    ids = [*fmt.encode_text("ab"), fmt.end_of_turn_id]
    return FakeEngine(always(ids), (fmt.end_of_turn_id,), max_context=FULL)


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (CHAT, body(n=128, logprobs=True, top_logprobs=20, max_tokens=FULL - 100), "top_logprobs"),
        (CHAT, body(n=128, logprobs=True, max_tokens=FULL - 100), "logprobs"),
        (TEXT, {"prompt": ["a"] * 128, "logprobs": 20, "max_tokens": 10_000}, "logprobs"),
        (TEXT, {"prompt": [[5] * 10_000] * 50, "logprobs": 20, "max_tokens": 1, "echo": True}, "logprobs"),
        (TEXT, {"prompt": [[5] * 10_000] * 50, "logprobs": 20, "max_tokens": 1, "echo": True, "stream": True},
         "logprobs"),
    ],
)  # fmt: skip
async def test_more_than_the_server_may_keep_is_refused(
    client: Client, engine: FakeEngine, path: str, fields: dict[str, Any], param: str
) -> None:
    async with client(engine) as http:
        response = await http.post(path, json=fields)
    error = error_of(response)
    assert (response.status_code, error["param"]) == (400, param)
    assert "256" in error["message"]
    assert not engine.seen


@pytest.mark.parametrize(
    "fields",
    [
        {"logprobs": True, "top_logprobs": 20, "max_tokens": FULL - 100},
        {"n": 128, "max_tokens": FULL - 100},
        {"n": 16, "logprobs": True, "top_logprobs": 5, "max_tokens": 4096},
        {"n": 128, "logprobs": True, "top_logprobs": 20, "max_tokens": FULL - 100, "stream": True},
    ],
)
async def test_what_fits_or_streams_is_not(client: Client, engine: FakeEngine, fields: dict[str, Any]) -> None:
    async with client(engine) as http:
        assert (await http.post(CHAT, json=body(**fields))).status_code == 200


async def test_the_limit_is_the_settings(fmt: ChatFormat, profile: Profile, engine: FakeEngine) -> None:
    app = create_app(engine, Settings(max_response_bytes=1 << 20), profile, fmt)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://twogear") as http:
        few = await http.post(CHAT, json=body(logprobs=True, max_tokens=1000))
        many = await http.post(CHAT, json=body(logprobs=True, max_tokens=2000))
    assert (few.status_code, many.status_code) == (200, 400)


async def test_what_all_responses_keep_is_bounded_as_it_comes(
    fmt: ChatFormat, profile: Profile, engine: FakeEngine
) -> None:
    """Two that wait for each other may not keep what one of them may."""
    ids, gate, steps = fmt.encode_text("a"), asyncio.Event(), 0

    async def step() -> None:
        nonlocal steps
        steps += 1
        if steps == 40:
            await gate.wait()

    engine = FakeEngine(lambda _: iter(ids * 100), (fmt.end_of_turn_id,), step=step)
    app = create_app(engine, Settings(max_responses_bytes=entry_bytes(60 * 6, 5)), profile, fmt)
    fields = body(logprobs=True, top_logprobs=5, max_tokens=50)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://twogear") as http:
        first = asyncio.create_task(http.post(CHAT, json=fields))
        while steps < 40:  # noqa: ASYNC110 - the engine has no event for it
            await asyncio.sleep(0)
        refused = await http.post(CHAT, json=fields)
        streamed = await http.post(CHAT, json={**fields, "stream": True})
        response: dict[str, Any] = {
            "model": MODEL,
            "input": "Hi",
            "stream": True,
            "top_logprobs": 5,
            "max_output_tokens": 50,
        }
        response["max_output_tokens"] = 50
        response["include"] = ["message.output_text.logprobs"]
        kept = await http.post("/v1/responses", json=response)
        gate.set()
        assert (await first).status_code == 200
        assert (await http.post(CHAT, json=fields)).status_code == 200
        metrics = (await http.get("/metrics")).text
    error = error_of(refused)
    assert (refused.status_code, error["code"]) == (503, "overloaded")
    assert "log-probabilities" in error["message"]
    assert int(refused.headers["retry-after"]) >= 1
    assert streamed.text.endswith("data: [DONE]\n\n")
    assert "The server is overloaded: the log-probabilities" in kept.text
    assert 'twogear_requests_rejected_total{reason="logprobs"} 2.0' in metrics
