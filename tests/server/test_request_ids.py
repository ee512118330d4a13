"""Every response tells the id of its request: the client's own, if it sent a sane one."""

import asyncio
import re

import httpx
import pytest

from chat_templates.format import ChatFormat
from server.app import create_app
from server.modes.profile import Profile
from server.settings import Settings
from tests.fake_engine import FakeEngine
from tests.server.conftest import Client, always, body, served

CHAT = "/v1/chat/completions"


@pytest.fixture
def engine(fmt: ChatFormat) -> FakeEngine:
    return FakeEngine(always([*fmt.encode_text("one two"), fmt.end_of_turn_id]), (fmt.end_of_turn_id,))


async def test_the_clients_id_comes_back_on_every_response(client: Client, engine: FakeEngine) -> None:
    named = {"X-Request-Id": "trip-7/leg.2:a=b+c@d_e"}
    async with client(engine) as http:
        responses = [
            await http.post(CHAT, json=body(), headers=named),
            await http.post(CHAT, json=body(stream=True), headers=named),
            await http.post(CHAT, json=body(reasoning_mode="none such"), headers=named),
            await http.post(CHAT, content=b"{", headers=named),
            await http.get("/no/such/route", headers=named),
            await http.put(CHAT, headers=named),
            await http.get("/health", headers=named),
            await http.get("/docs", headers=named),
        ]
    assert [response.headers.get_list("x-request-id") for response in responses] == [[named["X-Request-Id"]]] * 8
    assert [response.status_code for response in responses] == [200, 200, 400, 400, 404, 405, 200, 200]


async def test_anthropics_clients_find_it_under_their_name(client: Client, engine: FakeEngine) -> None:
    named, path = {"X-Request-Id": "trip-7"}, "/v1/messages"
    async with client(engine) as http:
        good = await http.post(path, json=body(max_tokens=9), headers=named)
        streamed = await http.post(path, json=body(max_tokens=9, stream=True))
        bad = await http.post(path, json={}, headers=named)
        unknown = await http.get("/v1/models/none", headers={**named, "anthropic-version": "2023-06-01"})
        others = await http.post(CHAT, json=body())
    assert [one.status_code for one in (good, streamed, bad, unknown, others)] == [200, 200, 400, 404, 200]
    for response in (good, streamed, bad, unknown):
        assert response.headers["request-id"] == response.headers["x-request-id"]
    assert bad.json()["request_id"] == unknown.json()["request_id"] == bad.headers["request-id"] == "trip-7"
    assert "request-id" not in others.headers


async def test_an_unforeseen_failure_has_it_too(
    engine: FakeEngine, profile: Profile, fmt: ChatFormat, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_app(engine, Settings(), profile, fmt)
    app.state.serving.metrics = None  # what no request can do: every response fails
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://twogear") as http:
        response = await http.get("/metrics", headers={"X-Request-Id": "mine"})
    assert (response.status_code, response.headers["x-request-id"]) == (500, "mine")
    assert "request mine failed unexpectedly" in caplog.text


@pytest.mark.parametrize("sent", [None, b"", b"a" * 129, b'say "hi"', b"new\tline", "é".encode()])
async def test_a_request_without_a_sane_id_gets_one(client: Client, engine: FakeEngine, sent: bytes | None) -> None:
    async with client(engine) as http:
        headers = [] if sent is None else [(b"X-Request-Id", sent)]
        ids = [(await http.get("/health", headers=headers)).headers["x-request-id"] for _ in range(2)]
    assert len(set(ids)) == 2
    assert all(one.startswith("req-") and len(one) == 28 for one in ids)


async def test_what_is_no_request_has_one(engine: FakeEngine, profile: Profile, fmt: ChatFormat) -> None:
    async with served(engine, profile, fmt, Settings()) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"nonsense\r\n\r\n")
        response = await reader.read()
        writer.close()
    assert response.startswith(b"HTTP/1.1 400 ")
    assert re.search(rb"\r\nx-request-id: req-\w{24}\r\n\r\n\{", response)
