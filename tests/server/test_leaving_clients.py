"""Clients that leave while they send their bodies, over real connections: they leave nothing in the log or behind."""

import asyncio
import json
import logging
import re
import socket
import struct
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import pytest

from chat_templates.format import ChatFormat
from chat_templates.limits import TooSlowError
from server.core.serving import Serving
from server.draining import DrainingServer
from server.modes.profile import Profile
from server.settings import Settings
from tests.fake_engine import FakeEngine
from tests.server.conftest import always, body, served

HEAD = b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CONTENT = json.dumps(body(stream=True)).encode()
WAYS = {
    "half a body": HEAD + b"Content-Length: %d\r\n\r\n" % len(CONTENT) + CONTENT[:20],
    "no body": HEAD + b"Content-Length: %d\r\n\r\n" % len(CONTENT),
    "half a chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n50\r\n" + CONTENT[:20],
    "waits for leave": HEAD + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(CONTENT),
    "half a head": HEAD[:-8],
    "a whole request": HEAD + b"Content-Length: %d\r\n\r\n" % len(CONTENT) + CONTENT,
}
ROUTES = (b"/v1/chat/completions", b"/v1/completions", b"/tokenize", b"/detokenize")


Running = tuple[DrainingServer, Serving, tuple[str, int]]


@asynccontextmanager
async def server(profile: Profile, fmt: ChatFormat) -> AsyncIterator[Running]:
    engine = FakeEngine(always(fmt.encode_text("a") * 500), (fmt.end_of_turn_id,), step=lambda: asyncio.sleep(0.01))
    async with served(engine, profile, fmt, Settings()) as (running, port):
        yield running, running.serving, ("127.0.0.1", port)


async def _leave(one: Running, pieces: Sequence[bytes], *, reset: bool) -> None:
    """Clients that send a piece each, and leave together once the server has read all heads."""
    running, _, address = one
    loop, state = asyncio.get_running_loop(), running.server_state
    with ExitStack() as held:
        connections = [held.enter_context(socket.socket()) for _ in pieces]
        for connection, sent in zip(connections, pieces, strict=True):
            connection.setblocking(False)
            await loop.sock_connect(connection, address)
            await loop.sock_sendall(connection, sent)
        whole = sum(b"\r\n\r\n" in sent for sent in pieces)
        while len(state.connections) < len(pieces) or len(state.tasks) + state.total_requests < whole:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        if reset:
            for connection in connections:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("way", WAYS)
async def test_a_client_that_leaves_is_no_line_in_the_log(
    way: str, reset: bool, profile: Profile, fmt: ChatFormat, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with server(profile, fmt) as one:
        running, serving, _ = one
        sent = [WAYS[way].replace(b"%s", route) for route in ROUTES for _ in range(5)]
        await _leave(one, sent, reset=reset)
        while running.server_state.tasks or running.server_state.connections:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)
        assert not serving.running
        metrics = serving.metrics.text().decode()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert set(re.findall(r'requests_total{.*outcome="failed"} (.*)', metrics)) == {"0.0"}
    if way in ("half a body", "no body", "half a chunk"):
        assert 'twogear_requests_total{mode="unknown",outcome="cancelled"} 10.0' in metrics


async def test_a_client_that_leaves_while_its_template_is_rendered(
    profile: Profile, fmt: ChatFormat, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.WARNING)
    begun, let_go, render = threading.Semaphore(0), threading.Event(), ChatFormat.render

    def slow(self: ChatFormat, *args: Any, **fields: Any) -> list[int]:
        if threading.current_thread() is threading.main_thread():
            raise TooSlowError("", "messages")  # as one that takes more than a moment
        begun.release()
        let_go.wait()
        return render(self, *args, **fields)

    monkeypatch.setattr(ChatFormat, "render", slow)
    async with server(profile, fmt) as one:
        serving = one[1]
        for content in (CONTENT, json.dumps(body()).encode()):
            head = HEAD.replace(b"%s", ROUTES[0]) + b"Content-Length: %d\r\n\r\n" % len(content)
            await _leave(one, [head + content], reset=True)
        for _ in range(2):
            await asyncio.to_thread(begun.acquire)
        let_go.set()
        cancelled = 'twogear_requests_total{mode="standard",outcome="cancelled"} 2.0'
        async with asyncio.timeout(240):
            while cancelled not in serving.metrics.text().decode():  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.01)
        assert not serving.running
        engine = serving.engine
        assert isinstance(engine, FakeEngine)
        assert not engine.under_way
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
