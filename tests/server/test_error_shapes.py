"""Every error of an API that has a shape of its own has that shape, before and in a stream, and no other API's has."""

from collections.abc import AsyncIterator
from dataclasses import replace

import httpx
import pytest

from chat_templates.format import ChatFormat
from server.api.registry import APIS
from server.app import create_app
from server.engine_client import EngineStatus
from server.errors import ApiError, ErrorShape, JsonObject
from server.modes.profile import Profile
from server.settings import Settings
from tests.fake_engine import FakeEngine
from tests.server.conftest import always
from tests.server.example_api import API


def shaped(error: ApiError, _request_id: str) -> JsonObject:
    return {"wrong": error.message, "status": int(error.status)}


@pytest.fixture
def engine(fmt: ChatFormat) -> FakeEngine:
    return FakeEngine(always([*fmt.encode_text("83"), fmt.end_of_turn_id]), (fmt.end_of_turn_id,))


@pytest.fixture
async def http(engine: FakeEngine, profile: Profile, fmt: ChatFormat) -> AsyncIterator[httpx.AsyncClient]:
    own = replace(API, errors=ErrorShape("/ask", "x-asker", shaped))
    app = create_app(engine, Settings(), profile, fmt, (*APIS, own))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://twogear") as client:
        yield client


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/ask", {"question": 5}, 400),
        ("POST", "/ask", {"question": "a", "gear": "third", "stream": True}, 400),
        ("GET", "/ask", None, 405),
        ("POST", "/ask/more", None, 404),
    ],
)
async def test_its_errors(
    http: httpx.AsyncClient, method: str, path: str, body: dict[str, object] | None, status: int
) -> None:
    response = await http.request(method, path, json=body)
    assert response.status_code == status
    assert set(response.json()) == {"wrong", "status"}
    assert response.json()["status"] == status


async def test_before_the_first_event(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.fail_after = 0
    response = await http.post("/ask", json={"question": "a", "stream": True})
    assert (response.status_code, response.json()["status"]) == (503, 503)
    assert response.headers["retry-after"]


async def test_where_the_client_says_whose_api_it_speaks(http: httpx.AsyncClient) -> None:
    assert "wrong" in (await http.get("/v1/models/none", headers={"X-Asker": "1"})).json()
    assert "error" in (await http.get("/v1/models/none")).json()


async def test_the_other_apis_keep_theirs(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.status = EngineStatus("lost", "", 0.0)
    response = await http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "a"}]})
    assert response.json()["error"]["type"] == "service_unavailable_error"
