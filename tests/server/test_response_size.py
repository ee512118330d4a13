"""What the log-probabilities of a response may take is bounded before anything is generated."""

from typing import Any

import httpx
import pytest

from chat_templates.format import ChatFormat
from server.app import create_app
from server.modes.profile import Profile
from server.settings import Settings
from tests.fake_engine import FakeEngine
from tests.server.conftest import Client, always, body
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
