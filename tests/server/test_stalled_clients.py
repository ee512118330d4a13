"""A client that does not read its stream holds its connection for a while only, and its place for a shorter one."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import pytest

from chat_templates.format import ChatFormat
from server.modes.profile import Profile
from server.settings import Settings
from tests.fake_engine import FakeEngine
from tests.server.conftest import body, served

LONG = 100_000  # tokens
SETTINGS = Settings(stall_seconds=0.5)


@pytest.fixture
def engine(fmt: ChatFormat) -> FakeEngine:
    ids = fmt.encode_text("a")
    return FakeEngine(lambda _prompt: iter(ids * LONG), (fmt.end_of_turn_id,), max_context=2 * LONG)


@asynccontextmanager
async def stream(
    engine: FakeEngine, profile: Profile, fmt: ChatFormat, settings: Settings = SETTINGS, **fields: Any
) -> AsyncIterator[socket.socket]:
    """A connection over which a long stream has been asked for, with little room for what comes."""
    asked = {"stream": True, "logprobs": True, "top_logprobs": 20, "max_tokens": LONG, **fields}
    content = json.dumps(body(**asked)).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    async with served(engine, profile, fmt, settings) as (_, port):
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", port))
            connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(content) + content)
            connection.setblocking(False)
            yield connection


async def test_a_client_that_does_not_read_is_ended(engine: FakeEngine, profile: Profile, fmt: ChatFormat) -> None:
    async with stream(engine, profile, fmt):
        async with asyncio.timeout(240):
            while not engine.aborted:  # noqa: ASYNC110 - the engine has no event for it
                await asyncio.sleep(0.05)
    assert len(engine.aborted) == len(engine.seen) == 1


async def test_a_client_that_reads_slowly_is_not(engine: FakeEngine, profile: Profile, fmt: ChatFormat) -> None:
    """A busy machine may keep even such a client from reading for as long, but not every time."""

    async def is_kept() -> bool:
        async with stream(engine, profile, fmt) as connection:
            loop, ends = asyncio.get_running_loop(), time.monotonic() + 5 * SETTINGS.stall_seconds
            while time.monotonic() < ends and not engine.aborted:
                with suppress(ConnectionResetError):
                    await loop.sock_recv(connection, 65_536)
                await asyncio.sleep(SETTINGS.stall_seconds / 10)
            return not engine.aborted

    for _ in range(10):
        if await is_kept():
            return
        engine.aborted.clear()
    pytest.fail("it was ended ten times")


class OnePlace(FakeEngine):
    """`made`: the deltas that were asked for."""

    def __init__(self, fmt: ChatFormat) -> None:
        ids, self.made = fmt.encode_text("a"), 0
        super().__init__(
            lambda _prompt: iter(ids * LONG),
            (fmt.end_of_turn_id,),
            max_context=2 * LONG,
            max_num_seqs=1,
            step=self._count,
        )

    async def _count(self) -> None:
        self.made += 1
        await asyncio.sleep(0)


async def stalled(engine: OnePlace) -> None:
    """Until the engine is asked for no more, though the event loop turns a hundred times."""
    seen, turns = 0, 0
    while turns < 100:
        turns = turns + 1 if engine.made == seen > 0 else 0
        seen = engine.made
        await asyncio.sleep(0.002)


async def another(connection: socket.socket) -> str:
    """The answer to a short question, to the same server."""
    host, port = connection.getpeername()
    async with httpx.AsyncClient(base_url=f"http://{host}:{port}", timeout=None) as http:
        response = await http.post("/v1/chat/completions", json=body(max_tokens=2))
    return str(response.json()["choices"][0]["message"]["content"])


async def test_a_client_that_does_not_read_keeps_no_place_from_others(
    profile: Profile, fmt: ChatFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection stays. When it is read on, the rest comes: from where it was left, with no token lost."""
    monkeypatch.setattr("server.core.absent_readers.LOOK_SECONDS", 0.02)
    engine, most = OnePlace(fmt), 500
    async with stream(engine, profile, fmt, Settings(stall_seconds=600), max_tokens=most) as connection:
        await stalled(engine)
        assert 0 < engine.made < most
        assert await another(connection) == "aa"
        loop, got = asyncio.get_running_loop(), b""
        while b"[DONE]" not in got[-100:]:
            got += await loop.sock_recv(connection, 1 << 20)
    (first, second), rest = engine.seen[:2], engine.seen[2:]
    assert second.sampling.max_tokens == 2
    assert rest
    assert got.count(b'"token":"a"') == 2 * most  # itself, and as the likeliest in its place
    assert len(rest[0].prompt_ids) + rest[0].sampling.max_tokens == len(first.prompt_ids) + most


async def test_what_cannot_be_gone_on_with_keeps_its_place(
    profile: Profile, fmt: ChatFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does where it is read: a client that pauses does not lose an answer with a seed."""
    monkeypatch.setattr("server.core.absent_readers.LOOK_SECONDS", 0.02)
    engine = OnePlace(fmt)
    settings, seeded = Settings(stall_seconds=600), {"seed": 1, "temperature": 1.0, "max_tokens": 500}
    async with stream(engine, profile, fmt, settings, **seeded) as connection:
        await stalled(engine)
        waiting = asyncio.create_task(another(connection))
        await asyncio.sleep(0.5)
        assert not waiting.done()
        loop, got = asyncio.get_running_loop(), b""
        while b"[DONE]" not in got[-100:]:
            got += await loop.sock_recv(connection, 1 << 20)
        assert await waiting == "aa"
    assert len(engine.seen) == 2
