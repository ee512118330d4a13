"""Bytes of bodies in flight: never more than the budget and one body beside it; everybody gets a turn or is told."""

import asyncio
import gc
import json
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_templates.format import ChatFormat
from server.app import create_app
from server.core.bytes_budget import BudgetSpent, BytesBudget
from server.http.reading import MOST_PARTS, PARSED_BYTES
from server.modes.profile import Profile
from server.offload import LONG
from server.settings import Settings
from tests.fake_engine import FakeEngine
from tests.server.conftest import always, body

CHAT = "/v1/chat/completions"


@given(needs=st.lists(st.lists(st.integers(1, 30), max_size=5), max_size=12), most=st.integers(1, 60))
def test_all_get_what_they_need_in_bits(needs: list[list[int]], most: int) -> None:
    async def run() -> None:
        budget = BytesBudget(most, patience=60)

        async def hold(sizes: list[int]) -> None:
            holder = budget.holder()
            for size in sizes:
                await holder.take(size)
                assert budget.used <= most + max(map(sum, needs))
                await asyncio.sleep(0)
            holder.release()

        await asyncio.gather(*map(hold, needs))
        assert budget.used == 0

    asyncio.run(run())


async def test_no_turn_in_time() -> None:
    budget = BytesBudget(10, patience=0.01)
    first, second, third, fourth = (budget.holder() for _ in range(4))
    await first.take(10)
    await second.take(5)  # the one that may exceed
    for _ in range(2):
        with pytest.raises(BudgetSpent):
            await third.take(5)
    waiting = asyncio.create_task(fourth.take(5))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    second.release()
    first.release()
    assert budget.used == 0
    await third.take(10)
    assert budget.used == 10


async def test_what_is_dropped_is_given_back() -> None:
    budget = BytesBudget(10)
    holder = budget.holder()
    await holder.take(10)
    await asyncio.to_thread(holder.__class__.__del__, holder)  # on whichever thread
    holder.size = 0
    await asyncio.sleep(0)
    assert budget.used == 0


def engine_of(fmt: ChatFormat) -> FakeEngine:
    return FakeEngine(always([*fmt.encode_text("so"), fmt.end_of_turn_id]), (fmt.end_of_turn_id,))


def long_body(size: int, **fields: Any) -> bytes:
    return json.dumps(body(**fields, metadata={"a": "x" * size})).encode()


async def test_many_long_bodies_share_the_memory(profile: Profile, fmt: ChatFormat) -> None:
    size = 10 * LONG
    settings = Settings(max_bodies_bytes=3 * size, max_parsed_bytes=2 * size * PARSED_BYTES)
    app = create_app(engine_of(fmt), settings, profile, fmt)
    serving = app.state.serving
    most = [0, 0]

    async def parts(content: bytes) -> Any:
        for start in range(0, len(content), LONG):
            most[:] = max(most[0], serving.bodies.used), max(most[1], serving.parsed.used)
            yield content[start : start + LONG]
            await asyncio.sleep(0)

    contents = [long_body(size), long_body(size, messages=[]), b"{" + b" " * size, long_body(size, n=0)] * 10
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://twogear") as http:
        answers = await asyncio.gather(*(http.post(CHAT, content=parts(content)) for content in contents))
    assert [answer.status_code for answer in answers] == [200, 400, 400, 400] * 10
    assert 2 * size < most[0] <= settings.max_bodies_bytes + size + LONG
    assert 0 < most[1] <= settings.max_parsed_bytes + 2 * size * PARSED_BYTES
    gc.collect()
    await asyncio.sleep(0)
    assert (serving.bodies.used, serving.parsed.used) == (0, 0)


@pytest.mark.parametrize("budget", ["max_bodies_bytes", "max_parsed_bytes"])
async def test_where_there_is_no_room_the_client_is_told(
    profile: Profile, fmt: ChatFormat, monkeypatch: pytest.MonkeyPatch, budget: str
) -> None:
    settings = Settings(max_bodies_bytes=1) if budget == "max_bodies_bytes" else Settings(max_parsed_bytes=1)
    app = create_app(engine_of(fmt), settings, profile, fmt)
    serving = app.state.serving
    held = serving.bodies if budget == "max_bodies_bytes" else serving.parsed
    monkeypatch.setattr(held, "_patience", 0.01)
    other = held.holder()
    await other.take(1000)  # for which there never is room: the one that may exceed
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://twogear") as http:
        refused = await http.post(CHAT, content=long_body(LONG))
        short = await http.post(CHAT, content=long_body(10))
        other.release()
        again = await http.post(CHAT, content=long_body(LONG))
    assert (refused.status_code, short.status_code, again.status_code) == (503, 200, 200)
    assert "retry-after" in refused.headers


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b'{"messages":[{"role":"user","content":"Hi"}],"x":[' + b"{}," * MOST_PARTS + b"0]}", 400),
        (b'{"messages":[{"role":"user","content":"Hi"}],"x":"' + b"[{:" * MOST_PARTS + b'"}', 200),
        (b'{"messages":[{"role":"user","content":"Hi"}],"x":["\\"[",' + b'"",' * MOST_PARTS + b"0]}", 200),
        (b'{"messages":[{"role":"user","content":"Hi"}],"x":"' + b'\\"[' * MOST_PARTS + b"\\", 400),
    ],
    ids=["parts", "text", "strings", "no end"],
)
async def test_more_parts_than_any_use_needs(profile: Profile, fmt: ChatFormat, content: bytes, status: int) -> None:
    """Parsing takes one go: while a million objects are made nobody else gets a token."""
    app = create_app(engine_of(fmt), Settings(), profile, fmt)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://twogear") as http:
        response = await http.post(CHAT, content=content)
    assert response.status_code == status, response.text
