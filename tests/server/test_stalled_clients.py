"""A client that does not read its stream holds its place and its pages for a while only."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from chat_templates.format import ChatFormat
from server.app import create_app
from server.launch import DrainingServer, bind, server_config
from server.modes.profile import Profile
from server.settings import Settings
from tests.fake_engine import FakeEngine
from tests.server.conftest import body

LONG = 100_000  # tokens
SETTINGS = Settings(stall_seconds=0.5)


@pytest.fixture
def engine(fmt: ChatFormat) -> FakeEngine:
    ids = fmt.encode_text("a")
    return FakeEngine(lambda _prompt: iter(ids * LONG), (fmt.end_of_turn_id,), max_context=2 * LONG)


@asynccontextmanager
async def stream(engine: FakeEngine, profile: Profile, fmt: ChatFormat) -> AsyncIterator[socket.socket]:
    """A connection over which a long stream has been asked for, with little room for what comes."""
    listener = bind("127.0.0.1", 0)
    app = create_app(engine, SETTINGS, profile, fmt)
    server = DrainingServer(app.state.serving, server_config(app, SETTINGS))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    content = json.dumps(body(stream=True, logprobs=True, top_logprobs=20, max_tokens=LONG)).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    try:
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(listener.getsockname())
            connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(content) + content)
            connection.setblocking(False)
            yield connection
    finally:
        server.should_exit = True
        await serving


async def test_a_client_that_does_not_read_is_ended(engine: FakeEngine, profile: Profile, fmt: ChatFormat) -> None:
    async with stream(engine, profile, fmt):
        async with asyncio.timeout(30):
            while not engine.aborted:  # noqa: ASYNC110 - the engine has no event for it
                await asyncio.sleep(0.05)
    assert len(engine.aborted) == len(engine.seen) == 1


async def test_a_client_that_reads_slowly_is_not(engine: FakeEngine, profile: Profile, fmt: ChatFormat) -> None:
    async with stream(engine, profile, fmt) as connection:
        loop, ends = asyncio.get_running_loop(), time.monotonic() + 5 * SETTINGS.stall_seconds
        while time.monotonic() < ends:
            assert await loop.sock_recv(connection, 65_536)
            await asyncio.sleep(SETTINGS.stall_seconds / 10)
        assert not engine.aborted
