"""Where many stream, each is told of its tokens less often: of all of them, and of the first and the last at once."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.messages import Delta, Generate, Sampling, Step, TokenLogprob
from server.delta_stream import DeltaStream
from server.engine_client import EngineStatus, EngineUnavailable
from server.engine_supervisor import EngineSupervisor
from server.pacer import Pacer
from server.process_engine_client import ProcessEngineClient
from tests.engine.conftest import until

NEVER = 3600.0
"""Seconds of a rest that ends with no test."""


def crowded(rest: float = NEVER) -> Pacer:
    pacer = Pacer(many=1, rest=rest)
    pacer.streams = 2
    return pacer


class Reader:
    """Reads a stream as it comes; `got` are its events."""

    def __init__(self, pacer: Pacer, free_tokens: int = 0) -> None:
        self.stream = DeltaStream(lambda _: None, pacer, free_tokens)
        self.got: list[Delta] = []
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for delta in self.stream:
            self.got.append(delta)

    async def put(self, *deltas: Delta) -> list[int]:
        """Sizes of all events, once each of these had its time to be read."""
        for delta in deltas:
            self.stream.put(delta)
            for _ in range(3):
                await asyncio.sleep(0)
        return [len(delta.token_ids) for delta in self.got]

    async def ended(self) -> None:
        await self._task


def one(number: int) -> Delta:
    return Delta("id", [number])


async def test_few_are_told_of_each_token() -> None:
    pacer = Pacer(many=2)
    pacer.streams = 2
    assert await Reader(pacer).put(*map(one, range(5))) == [1] * 5


async def test_many_are_told_of_the_first_and_the_last_at_once_and_of_the_others_together() -> None:
    reader = Reader(crowded())
    assert await reader.put(one(0)) == [1]
    assert await reader.put(one(1), one(2), one(3)) == [1]
    assert await reader.put(Delta("id", [4], finish="length")) == [1, 4]
    assert [token_id for delta in reader.got for token_id in delta.token_ids] == [0, 1, 2, 3, 4]
    await reader.ended()


async def test_the_answer_begins_at_once_where_its_thinking_was_closed() -> None:
    reader = Reader(crowded())
    assert await reader.put(one(0), one(1), Delta("id", [2], goes_on=True)) == [1, 2]
    assert await reader.put(Delta("id", [3], cached_tokens=5)) == [1, 2, 1]
    assert await reader.put(one(4), one(5)) == [1, 2, 1]


async def test_what_shows_nothing_until_there_is_enough_of_it_is_not_slower_for_that() -> None:
    reader = Reader(crowded(), free_tokens=4)
    assert await reader.put(one(0), one(1), one(2), one(3), one(4)) == [1] * 5
    assert await reader.put(one(5)) == [1] * 5


async def test_an_error_comes_after_what_was_held_back() -> None:
    reader = Reader(crowded())
    await reader.put(one(0), one(1), one(2))
    reader.stream.fail(EngineUnavailable("lost"))
    with pytest.raises(EngineUnavailable):
        await reader.ended()
    assert [delta.token_ids for delta in reader.got] == [[0], [1, 2]]


async def test_the_end_of_a_rest_shows_what_was_held_back_though_nothing_comes_any_more() -> None:
    reader = Reader(crowded(rest=0.01))
    assert await reader.put(one(0), one(1), one(2)) == [1]
    await until(lambda: len(reader.got) > 1)
    assert [delta.token_ids for delta in reader.got] == [[0], [1, 2]]


async def test_no_stream_has_more_events_than_rests() -> None:
    rest, loop = 0.02, asyncio.get_running_loop()
    pacer = crowded(rest)
    readers = [Reader(pacer) for _ in range(3)]
    started = loop.time()
    for number in range(200):
        for reader in readers:
            reader.stream.put(one(number))
        await asyncio.sleep(0.001)
    for reader in readers:
        reader.stream.put(Delta("id", [200], finish="length"))
        await reader.ended()
        assert [token_id for delta in reader.got for token_id in delta.token_ids] == list(range(201))
        assert len(reader.got) <= 2 + (loop.time() - started) / rest


@given(
    st.lists(st.tuples(st.integers(1, 3), st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=12),
    st.integers(0, 5),
)
def test_nothing_is_lost_however_it_is_held(made: list[tuple[int, bool, bool, bool]], free: int) -> None:
    """For each delta: its tokens, whether another generation follows it, whether a rest ends, whether many stream."""
    put: list[Delta] = []

    async def run() -> Sequence[Delta]:
        pacer = crowded()
        reader = Reader(pacer, free)
        number = 0
        for size, goes_on, is_over, many in made:
            ids = list(range(number, number := number + size))
            put.append(Delta("id", ids, logprobs=[TokenLogprob(-i) for i in ids], goes_on=goes_on))
            pacer.streams = 2 if many else 1
            await reader.put(put[-1])
            if is_over:
                reader.stream.release()
        await reader.put(Delta("id", [number], finish="stop", stop_token_id=number, logprobs=[TokenLogprob(-number)]))
        await reader.ended()
        return reader.got

    got = asyncio.run(run())
    total = sum(len(delta.token_ids) for delta in put) + 1
    assert [i for delta in got for i in delta.token_ids] == list(range(total))
    assert [-entry.logprob for delta in got for entry in delta.logprobs or ()] == list(range(total))
    assert all(len(delta.token_ids) == len(delta.logprobs or ()) for delta in got)
    ends = [delta.token_ids[-1] for delta in put if delta.goes_on]
    assert [delta.token_ids[-1] for delta in got if delta.goes_on] == ends
    assert [delta.finish for delta in got if delta.finish] == ["stop"]


async def test_the_streams_of_all_engines_count_until_they_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """However they end."""
    monkeypatch.setattr(EngineSupervisor, "status", EngineStatus("ready", "", 1.0))
    pacer = Pacer()
    clients = [ProcessEngineClient("model", pacer=pacer) for _ in range(2)]
    for client in clients:
        for name in "abc":
            client.generate(Generate(name, [1], Sampling(max_tokens=9)))
    assert pacer.streams == 6
    clients[0].take(Step([Delta("a", [1], finish="stop")]))
    clients[0].abort("b")
    assert pacer.streams == 4
    clients[1].fail(EngineUnavailable("lost"))
    assert pacer.streams == 1
