"""Responses in the background: made without their client, polled, cancelled, and their events read from the middle."""

import asyncio

import httpx
import pytest

from chat_templates.format import ChatFormat
from server.api.responses.events_log import EventLog, LogBytes
from server.api.responses.store import ENTRY_BYTES, ResponseStore, StoredInput
from server.app import create_app
from server.errors import BadRequestError, UnknownResponseError
from server.modes.profile import Profile
from server.settings import Settings
from tests.fake_engine import FakeEngine
from tests.server.conftest import Client, always
from tests.server.test_http import error_of
from tests.server.test_launch import Running
from tests.server.test_response_store import response_of
from tests.server.test_responses import (
    URL,
    asked,
    connected,
    engine,
    events_of,
    http,
    next_event,
    post,
    stream,
    unnamed,
)

__all__ = ["engine", "http"]  # fixtures


async def ended(http: httpx.AsyncClient, response_id: str) -> dict[str, object]:
    """The response, once it is over."""
    while True:
        body: dict[str, object] = (await http.get(f"{URL}/{response_id}")).json()
        if body["status"] not in ("queued", "in_progress"):
            return body
        await asyncio.sleep(0.005)


async def test_it_comes_at_once_and_is_the_one_that_a_waiting_client_gets(http: httpx.AsyncClient) -> None:
    begun = await post(http, background=True, reasoning_mode="reasoning")
    assert (begun["status"], begun["output"], begun["background"]) == ("queued", [], True)
    whole = await post(http, reasoning_mode="reasoning")
    assert unnamed(await ended(http, begun["id"])) == {**unnamed(whole), "background": True}
    following = await post(http, previous_response_id=begun["id"])
    assert following["previous_response_id"] == begun["id"]


async def test_its_events_can_be_read_again_from_any_on(http: httpx.AsyncClient) -> None:
    response = await http.post(URL, json=asked(background=True, stream=True))
    events = events_of(response.text)
    response_id = events[0]["response"]["id"]
    assert [one["type"] for one in events] == [one["type"] for one in await stream(http)]
    assert (await http.get(f"{URL}/{response_id}")).json() == events[-1]["response"]
    assert (await http.get(f"{URL}/{response_id}?stream=true")).text == response.text
    parts = response.text.split("\n\n")
    for after in (0, 3, len(events) - 2):
        rest = await http.get(f"{URL}/{response_id}?stream=true&starting_after={after}")
        assert rest.headers["content-type"].startswith("text/event-stream")
        assert rest.text == "\n\n".join(parts[after + 1 :])
    for wrong in (str(len(events) - 1), "-1", "first"):
        refused = await http.get(f"{URL}/{response_id}?stream=true&starting_after={wrong}")
        assert (refused.status_code, error_of(refused)["param"]) == (400, "starting_after")


async def test_the_events_of_others_are_not_kept(http: httpx.AsyncClient) -> None:
    polled = await post(http, background=True)
    await ended(http, polled["id"])
    for response_id in (polled["id"], (await stream(http))[-1]["response"]["id"]):
        refused = await http.get(f"{URL}/{response_id}?stream=true")
        assert (refused.status_code, error_of(refused)["param"]) == (400, "stream")


async def test_it_goes_on_without_its_client_until_it_is_cancelled(
    thinker: FakeEngine, profile: Profile, fmt: ChatFormat
) -> None:
    async with connected(Running(thinker, profile, fmt)) as http:
        body = asked(stream=True, background=True, reasoning_mode="reasoning", reasoning={"max_tokens": 20_000})
        async with http.stream("POST", URL, json=body) as response:
            lines = response.aiter_lines()
            events = [await next_event(lines) for _ in range(8)]
        response_id = events[0]["response"]["id"]
        following = f"{URL}/{response_id}?stream=true&starting_after=5"
        async with http.stream("GET", following) as response:
            lines = response.aiter_lines()
            again = [await next_event(lines) for _ in range(40)]
            assert [one["sequence_number"] for one in again] == list(range(6, 46))
            assert again[:2] == events[6:]
            assert not thinker.aborted
            assert (await http.get(f"{URL}/{response_id}")).json()["status"] == "in_progress"
            assert (await http.post(f"{URL}/{response_id}/cancel")).json()["status"] == "cancelled"
            while again[-1]["type"] != "response.incomplete":
                again.append(await next_event(lines))
        final = again[-1]["response"]
        assert final["status"] == "cancelled"
        assert await ended(http, response_id) == final
        assert (await http.post(f"{URL}/{response_id}/cancel")).json() == final


async def test_what_fails_later_says_so_and_what_has_no_place_is_refused_at_once(
    client: Client, fmt: ChatFormat, profile: Profile
) -> None:
    refusing = FakeEngine(always([fmt.end_of_turn_id]), (fmt.end_of_turn_id,), refuse="too odd")
    async with client(refusing) as http:
        response = await http.post(URL, json=asked(background=True))
        if response.status_code == 200:
            failed = await ended(http, response.json()["id"])
            assert (failed["status"], failed["error"]) == ("failed", {"code": "invalid_prompt", "message": "too odd"})
        else:
            assert "too odd" in error_of(response)["message"]
    for setting, status in ((Settings(max_stored_responses=0), 400), (Settings(max_in_flight=1), 503)):
        gate = asyncio.Event()

        async def step(gate: asyncio.Event = gate) -> None:
            await gate.wait()

        waiting = FakeEngine(always([fmt.end_of_turn_id]), (fmt.end_of_turn_id,), max_num_seqs=1, step=step)
        transport = httpx.ASGITransport(create_app(waiting, setting, profile, fmt))
        async with httpx.AsyncClient(transport=transport, base_url="http://twogear") as http:
            first = await http.post(URL, json=asked(background=True))
            second = await http.post(URL, json=asked(background=True))
            gate.set()
            assert second.status_code == status
            if status == 503:
                await ended(http, first.json()["id"])


async def test_a_log_that_is_too_long_loses_its_oldest_events() -> None:
    log = EventLog(LogBytes(100))
    behind = log.follow()
    log.add([b"a" * 40, b"b" * 40])
    assert await anext(behind) == b"a" * 40 + b"b" * 40
    log.add([b"c" * 40, b"d" * 40])
    log.add([b"e" * 40])
    log.tell()
    assert b"events_left" in await anext(behind)
    with pytest.raises(BadRequestError, match="up to 2 have left"):
        log.check(1)
    log.check(2)
    assert await anext(log.follow(2)) == b"d" * 40 + b"e" * 40
    log.end()
    with pytest.raises(BadRequestError, match="the last event has the number 4"):
        log.check(4)
    assert [part async for part in log.follow(3)] == [b"e" * 40]


async def test_logs_under_way_share_their_room_and_give_it_back() -> None:
    room = LogBytes(100)
    one, other = EventLog(room), EventLog(room)
    one.add([b"a" * 60])
    other.add([b"b" * 60])
    assert (one.size, other.size, room.held) == (60, 0, 60)
    one.end()
    other.add([b"c" * 60])
    assert (one.size, other.size, room.held) == (60, 60, 60)


def test_stored_events_count_and_leave_with_their_response() -> None:
    store = ResponseStore(10, 20_000)
    for name, size in (("a", 5_000), ("b", 8_000)):
        store.put(response_of(name), StoredInput.of([]), "")
        log = store.new_log()
        log.add([b"x" * size])
        log.end()
        store.keep_events(name, log)
    assert store.get("b", "").log is not None
    assert 13_000 + 2 * ENTRY_BYTES < store.size <= 20_000
    store.put(response_of("c", size=6_000), StoredInput.of([]), "")
    with pytest.raises(UnknownResponseError, match="has left the store"):
        store.get("a", "")
    store.delete("b", "")
    store.delete("c", "")
    store.keep_events("b", store.new_log())
    assert (len(store), store.size) == (0, 0)
