"""Several front ends on one port: what holds with one process holds with them."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from chat_templates.format import ChatFormat
from server.access.keys import Key, KeyFile, Limits, hash_of
from server.app import create_app
from server.cli_errors import UsageError
from server.draining import DrainingServer
from server.http.config import server_config
from server.http.front_ends.messages import WINDOW, decode_settings, encode_settings, framed
from server.http.front_ends.processes import FrontEnds, share
from server.listeners import bind, bind_all
from server.modes.profile import Profile
from server.settings import Settings
from tests.fake_engine import FakeEngine
from tests.server.conftest import MODEL, always, body
from tests.server.test_launch import HeldEngine

CHAT = "/v1/chat/completions"
SETTINGS = Settings(retry_after=1)


class Port:
    """The port of two front ends, and what is behind them."""

    def __init__(self, front_ends: FrontEnds, url: str) -> None:
        self.front_ends = front_ends
        self.url = url

    @asynccontextmanager
    async def at(self, number: int, **options: object) -> AsyncIterator[httpx.AsyncClient]:
        """A client whose connection is with that front end: the kernel chooses, so it is tried until it fits."""
        while True:
            async with httpx.AsyncClient(base_url=self.url, timeout=60, **options) as http:  # type: ignore[arg-type]
                before = self._taken(number)
                await http.get("/live")
                if self._taken(number) > before:
                    yield http
                    return

    def _taken(self, number: int) -> int:
        calls = self.front_ends.calls.get(number)
        return 0 if calls is None else calls.taken


@asynccontextmanager
async def opened(
    engine: FakeEngine, profile: Profile, fmt: ChatFormat, settings: Settings = SETTINGS, keys: KeyFile | None = None
) -> AsyncIterator[tuple[DrainingServer, Port]]:
    app = create_app(engine, settings, profile, fmt, keys=keys)
    listeners = bind_all("127.0.0.1", 0, 2)
    front_ends = FrontEnds(app, settings, listeners)
    server = DrainingServer(app.state.serving, server_config(app, settings), front_ends)
    serving = asyncio.create_task(server.serve(sockets=listeners))
    try:
        yield server, Port(front_ends, f"http://127.0.0.1:{listeners[0].getsockname()[1]}")
    finally:
        server.should_exit = True
        await serving


@pytest.fixture
def engine(fmt: ChatFormat) -> FakeEngine:
    return FakeEngine(always([*fmt.encode_text("Hello"), fmt.end_of_turn_id]), (fmt.end_of_turn_id,))


async def test_a_request_is_controlled_through_the_other(
    thinker: FakeEngine, profile: Profile, fmt: ChatFormat
) -> None:
    asked = body(stream=True, reasoning_mode="reasoning", max_tokens=60_000)
    async with (
        opened(thinker, profile, fmt) as (_, port),
        port.at(0) as one,
        port.at(1) as other,
        one.stream("POST", CHAT, json=asked) as response,
    ):
        lines = response.aiter_lines()
        name = (await anext(lines)).partition('"id":"')[2].partition('"')[0]
        while '"reasoning":' not in await anext(lines):
            pass
        told = await other.post(f"{CHAT}/{name}/control", json={"action": "end_reasoning"})
        rest = "".join([line async for line in lines])
    assert told.json()["choices"] == [0]
    assert '"reasoning_finish_reason":"stopped"' in rest
    assert rest.endswith("data: [DONE]")


async def test_what_a_key_may_holds_over_all(engine: FakeEngine, profile: Profile, fmt: ChatFormat) -> None:
    key = Key(name="anna", hash=hash_of(b"sk-anna"), limits=Limits(requests_per_minute=2))
    headers = {"Authorization": "Bearer sk-anna"}
    async with (
        opened(engine, profile, fmt, keys=KeyFile(keys=(key,))) as (_, port),
        port.at(0, headers=headers) as one,
        port.at(1, headers=headers) as other,
    ):
        statuses = [(await http.post(CHAT, json=body())).status_code for http in (one, other, one, other)]
    assert statuses == [200, 200, 429, 429]


async def test_a_stored_response_is_found_through_the_other(
    engine: FakeEngine, profile: Profile, fmt: ChatFormat
) -> None:
    async with opened(engine, profile, fmt) as (_, port), port.at(0) as one, port.at(1) as other:
        made = (await one.post("/v1/responses", json={"model": MODEL, "input": "Hi"})).json()
        found = await other.get(f"/v1/responses/{made['id']}")
        asked = {"model": MODEL, "input": "And?", "previous_response_id": made["id"]}
        following = await other.post("/v1/responses", json=asked)
    assert found.json() == made
    assert following.json()["previous_response_id"] == made["id"]


async def test_metrics_are_of_all(engine: FakeEngine, profile: Profile, fmt: ChatFormat) -> None:
    async with opened(engine, profile, fmt) as (_, port), port.at(0) as one, port.at(1) as other:
        for http in (one, other):
            await http.post(CHAT, json=body())
        told = [(await http.get("/metrics")).text for http in (one, other)]
    line = 'twogear_requests_total{mode="standard",outcome="completed"} 2.0'
    assert [line in text.splitlines() for text in told] == [True, True]


async def test_the_loss_of_one_is_that_of_its_connections(
    profile: Profile, fmt: ChatFormat, caplog: pytest.LogCaptureFixture
) -> None:
    held = HeldEngine(fmt)
    async with opened(held, profile, fmt) as (_, port), port.at(0) as one, port.at(1) as other:
        async with one.stream("POST", CHAT, json=body(stream=True)) as response:
            lines = response.aiter_lines()
            await anext(lines)
            os.kill(port.front_ends.calls[0].pid, signal.SIGKILL)
            with pytest.raises(httpx.TransportError):
                [line async for line in lines]
        assert await asyncio.to_thread(held.left.wait, 60)
        held.let_go.set()
        assert (await other.post(CHAT, json=body())).status_code == 200
        async with port.at(0) as again:
            assert (await again.post(CHAT, json=body())).status_code == 200
    assert "A front end was killed by SIGKILL" in caplog.text


async def test_a_termination_signal_lets_running_requests_end(profile: Profile, fmt: ChatFormat) -> None:
    held = HeldEngine(fmt)
    async with (
        opened(held, profile, fmt) as (server, port),
        port.at(0) as one,
        port.at(1) as other,
        one.stream("POST", CHAT, json=body(stream=True)) as response,
    ):
        lines = response.aiter_lines()
        await anext(lines)
        server.handle_exit(signal.SIGTERM, None)
        health = await other.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "draining")
        assert health.headers["connection"] == "close"
        held.let_go.set()
        assert [line async for line in lines if line][-1] == "data: [DONE]"
    assert held.closed


async def test_ctrl_c_ends_running_requests_with_an_error(profile: Profile, fmt: ChatFormat) -> None:
    async with (
        opened(HeldEngine(fmt), profile, fmt) as (server, port),
        port.at(0) as one,
        one.stream("POST", CHAT, json=body(stream=True)) as response,
    ):
        lines = response.aiter_lines()
        await anext(lines)
        server.handle_exit(signal.SIGINT, None)
        assert "shutting down" in [line async for line in lines if line][-1]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_hangs_up_ends_its_generation(profile: Profile, fmt: ChatFormat, stream: bool) -> None:
    held = HeldEngine(fmt)
    async with opened(held, profile, fmt) as (_, port):
        async with port.at(0) as one:
            asking = asyncio.create_task(one.post(CHAT, json=body(stream=stream)))
            while not held.under_way:  # noqa: ASYNC110 - the engine has no event for it
                await asyncio.sleep(0.01)
            asking.cancel()
        assert await asyncio.to_thread(held.left.wait, 60)
    assert not held.let_go.is_set()


async def test_a_client_that_does_not_read_is_ended(profile: Profile, fmt: ChatFormat) -> None:
    """Its answer does not pile up behind the front end: the engine is asked for no more."""
    endless = FakeEngine(always(fmt.encode_text("a") * 20_000), (fmt.end_of_turn_id,), max_context=40_000)
    asked = body(stream=True, logprobs=True, top_logprobs=20, max_tokens=20_000)
    settings = Settings(stall_seconds=2.0)
    async with (
        opened(endless, profile, fmt, settings) as (_, port),
        port.at(0) as one,
        one.stream("POST", CHAT, json=asked),
        asyncio.timeout(240),
    ):
        while not endless.aborted:  # noqa: ASYNC110 - the engine has no event for it
            await asyncio.sleep(0.05)
    assert len(endless.aborted) == len(endless.seen) == 1


async def test_bodies_come_in_parts_and_only_where_they_are_wanted(profile: Profile, fmt: ChatFormat) -> None:
    engine = FakeEngine(always([fmt.end_of_turn_id]), (fmt.end_of_turn_id,), max_context=400_000)
    text = "word " * 100_000

    async def parts() -> AsyncIterator[bytes]:
        for part in ('{"prompt": "', text[:200_000], text[200_000:], '"}'):
            yield part.encode()

    async with opened(engine, profile, fmt) as (_, port), port.at(0) as one:
        assert len(text) > 2 * WINDOW
        counted = await one.post("/tokenize", content=parts(), headers={"Content-Type": "application/json"})
        assert (counted.status_code, len(counted.json()["tokens"])) == (200, counted.json()["count"])
        host = port.url.removeprefix("http://").split(":")
        head = (
            b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n"
        )
        for length, first in ((15, b"HTTP/1.1 100 Continue"), (10**9, b"HTTP/1.1 413 ")):
            reader, writer = await asyncio.open_connection(host[0], int(host[1]))
            writer.write(head + b"Content-Length: %d\r\n\r\n" % length)
            assert (await reader.readline()).startswith(first)
            writer.close()


async def test_an_answer_that_breaks_off_is_not_taken_for_a_whole_one() -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        raise RuntimeError("broken")

    async with fronted(app) as url, httpx.AsyncClient(base_url=url) as http:
        with pytest.raises(httpx.RemoteProtocolError):
            await http.get("/")


@asynccontextmanager
async def fronted(app: ASGIApp) -> AsyncIterator[str]:
    listeners = bind_all("127.0.0.1", 0, 1)
    front_ends = FrontEnds(app, SETTINGS, listeners)
    front_ends.start()
    try:
        yield f"http://127.0.0.1:{listeners[0].getsockname()[1]}"
    finally:
        await front_ends.close()


async def test_a_front_end_ends_with_the_server_behind_it() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, bind("127.0.0.1", 0) as listener:
        fds = theirs.fileno(), listener.fileno()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "server.http.front_ends", "--link-fd", str(fds[0]), "--listen-fd", str(fds[1])),
            pass_fds=fds,
        )
        theirs.close()
        await asyncio.to_thread(ours.sendall, framed(encode_settings(SETTINGS)))
        ours.close()
        assert await process.wait() == 0


def test_settings_go_over_whole() -> None:
    settings = Settings(ssl_keyfile=Path("/a"), api_keys=Path("b"), default_chat_template_kwargs={"a": [1]})
    assert decode_settings(encode_settings(settings)) == settings


def test_limits_of_connections_are_divided() -> None:
    shared = share(Settings(max_connections=5, max_connections_per_address=3), 2)
    assert (shared.max_connections, shared.max_connections_per_address) == (3, 2)


@pytest.mark.parametrize("numbers", [(1, 2), (2, 1), (2, 2)])
def test_a_port_is_not_shared_with_another_server(numbers: tuple[int, int]) -> None:
    first = bind_all("127.0.0.1", 0, numbers[0])
    port = first[0].getsockname()[1]
    with pytest.raises(UsageError, match=f"port {port} on 127.0.0.1 is taken; choose another with --port"):
        bind_all("127.0.0.1", port, numbers[1])
    for listener in first:
        listener.close()
