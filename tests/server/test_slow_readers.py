"""A slow reader behind a fast engine: a bounded part waits for it, the rest is generated once it reads on."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack

import pytest

from chat_templates.format import ChatFormat
from engine.messages import Delta, Generate, Sampling, TokenLogprob
from server.core.choice import Advance, Choice
from server.core.generate import ChoiceRun
from server.core.merge import AHEAD, merged
from server.core.scheduler import Lane, ModeLoad, Scheduler
from server.delta_stream import MOST_PENDING, DeltaStream, _size
from server.engine_client import ReaderBehind
from server.pacer import Pacer
from tests.fake_engine import FakeEngine, script_of

PROMPT = [7, 7, 7]


class FastEngine(FakeEngine):
    """Gives all that it can before the first of it is read, as one in another process may."""

    pending = 0

    def is_running(self, request_id: str) -> bool:
        """It has done its part as soon as it was asked."""
        return False

    async def generate(self, request: Generate, kind: str = "") -> AsyncGenerator[Delta, None]:
        self.seen.append(request)
        stream, size = DeltaStream(lambda _: None, Pacer()), 0
        for delta in self._deltas(request):
            size += _size(delta)
            if not stream.put(delta):
                break
        self.pending = max(self.pending, size)
        finish = None
        while finish is None:
            delta = await anext(stream)
            finish = delta.finish
            yield delta


def sampling(tokens: int, seed: int | None = None) -> Sampling:
    return Sampling(max_tokens=tokens, logprobs=20, ignore_eos=True, seed=seed, temperature=1.0)


async def run(engine: FakeEngine, fmt: ChatFormat, how: Sampling) -> tuple[list[int], Scheduler]:
    scheduler = Scheduler(lambda: 4, {"mode": ModeLoad(thinks=False)})
    choice = Choice(PROMPT, how, fmt.think_end())
    ids: list[int] = []

    def read(advance: Advance) -> None:
        assert len(advance.logprobs) == len(advance.token_ids)
        ids.extend(advance.token_ids)

    async for _ in ChoiceRun(engine, scheduler, scheduler.claim("mode"), choice, "id").read(read):
        pass
    return ids, scheduler


async def test_the_rest_is_generated_when_the_reader_has_caught_up(fmt: ChatFormat) -> None:
    written = [100 + number % 500 for number in range(5000)]
    engine = FastEngine(script_of(written, len(PROMPT)), (), max_context=10_000)
    ids, scheduler = await run(engine, fmt, sampling(len(written)))
    assert ids == written
    assert len(engine.seen) > 2
    assert engine.pending <= MOST_PENDING + 20_000
    assert scheduler.running(Lane.DIRECT) == 0


async def test_what_cannot_be_gone_on_with_ends(fmt: ChatFormat) -> None:
    engine = FastEngine(script_of([100], len(PROMPT)), (), max_context=10_000)
    with pytest.raises(ReaderBehind):
        await run(engine, fmt, sampling(5000, seed=1))


PLAYED = 300


async def test_a_place_ends_with_its_generation_whoever_reads_that(
    fmt: ChatFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it could not be gone on with: nothing is lost, and it is not generated again."""
    monkeypatch.setattr("server.core.absent_readers.LOOK_SECONDS", 0.001)
    engine = FastEngine(script_of([100], len(PROMPT)), (), max_context=10_000)
    scheduler = Scheduler(lambda: 1, {"mode": ModeLoad(thinks=False)})
    choice = Choice(PROMPT, sampling(PLAYED, seed=1), fmt.think_end())
    ids: list[int] = []
    run = ChoiceRun(engine, scheduler, scheduler.claim("mode"), choice, "id", one_by_one=True)
    async for _ in run.read(lambda advance: ids.extend(advance.token_ids)):
        if len(ids) == 1:
            async with scheduler.place(scheduler.claim("mode"), thinking=False, can_set_back=True):
                pass
    assert ids == [100] * PLAYED
    assert len(engine.seen) == 1
    assert scheduler.running(Lane.DIRECT) == 0


async def test_a_thinker_that_is_not_read_is_set_back_at_once(fmt: ChatFormat, monkeypatch: pytest.MonkeyPatch) -> None:
    """A direct request that needs its place waits for no reader, nor until that counts as one who stays away."""
    monkeypatch.setattr("server.core.absent_readers.LOOK_SECONDS", 3600)
    engine = FakeEngine(script_of([100], len(PROMPT)), (), max_context=10_000)
    modes = {"thinks": ModeLoad(thinks=True), "direct": ModeLoad(thinks=False)}
    scheduler = Scheduler(lambda: 4, modes)

    def thinker(name: str) -> AsyncGenerator[None, None]:
        choice = Choice(PROMPT, sampling(PLAYED), fmt.think_end())
        run = ChoiceRun(engine, scheduler, scheduler.claim("thinks"), choice, name)
        return run.read(lambda advance: written[name].extend(advance.token_ids))

    written: dict[str, list[int]] = {name: [] for name in "abc"}
    thinkers = {name: thinker(name) for name in "abc"}
    for reader in thinkers.values():  # three of four places, and nobody reads on
        await anext(reader)
    async with AsyncExitStack() as places:
        for _ in range(3):
            claim = scheduler.claim("direct")
            await places.enter_async_context(scheduler.place(claim, thinking=False, can_set_back=True))
    for name, reader in thinkers.items():
        async for _ in reader:
            pass
        assert written[name] == [100] * PLAYED
    assert [scheduler.running(lane) for lane in Lane] == [0, 0, 0]


async def test_bare_tokens_wait_however_many_they_are() -> None:
    stream = DeltaStream(lambda _: None, Pacer())
    assert all(stream.put(Delta("id", [1] * 32)) for _ in range(1000))
    assert len((await anext(stream)).token_ids) == 32_000


async def test_what_has_been_read_waits_no_more() -> None:
    stream = DeltaStream(lambda _: None, Pacer())
    delta = Delta("id", [1] * 100, logprobs=[TokenLogprob(-1.0, [(1, -1.0)] * 20)] * 100)
    for _ in range(100):
        assert stream.put(delta)
        assert await anext(stream) == delta
    while stream.put(delta):
        pass
    await anext(stream)
    with pytest.raises(ReaderBehind):
        await anext(stream)


async def counting(made: Callable[[], None]) -> AsyncGenerator[int, None]:
    for number in range(1000):
        made()
        yield number
        await asyncio.sleep(0)


async def test_merged_sources_wait_for_the_reader() -> None:
    made = [0]

    def one_more() -> None:
        made[0] += 1

    reader = merged([counting(one_more) for _ in range(3)])
    got = 0
    async for _ in reader:
        got += 1
        for _ in range(10):
            await asyncio.sleep(0)
        assert made[0] <= got + 3 * (AHEAD + 1)
        if got > 100:
            break
    assert [number async for number in reader]
