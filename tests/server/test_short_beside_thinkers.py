"""The load of `benchmarks/short_beside_thinkers.py` in steps: the scheduler alone; a step is a token for each place."""

import asyncio
from dataclasses import dataclass, field

import pytest

from server.core.scheduler import FREE_SHARE, KEPT_SHARE, ModeLoad, Scheduler

DIRECT, THINKS = "direct", "thinks"
PLACES = 256
STEPS_A_SECOND, DIRECT_A_SECOND, DIRECT_TOKENS = 20, 4, 16
ALONE = 200  # steps; then thinkers of one length have just begun to answer


@dataclass
class Engine:
    """`places` generations at once. Counts steps, the tokens of thinkers, and how long choices waited in steps."""

    places: int = PLACES
    now: int = 0
    thought: int = 0
    waited: dict[str, list[int]] = field(default_factory=lambda: {DIRECT: [], THINKS: []})

    def __post_init__(self) -> None:
        modes = {DIRECT: ModeLoad(thinks=False), THINKS: ModeLoad(thinks=True)}
        self.scheduler = Scheduler(lambda: self.places, modes)
        self._stepped = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []

    def ask(self, mode: str, tokens: int, thinking: int = 0) -> None:
        """One request, of which the first `thinking` tokens are thinking."""
        self.tasks.append(asyncio.create_task(self.run(mode, tokens, thinking)))

    async def step(self) -> None:
        """A token for all that have a place, once all have settled; and then they settle again."""
        await self._settle()
        self.now += 1
        stepped, self._stepped = self._stepped, asyncio.Event()
        stepped.set()
        await self._settle()

    async def end(self) -> None:
        """Breaks off what runs."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _settle(self) -> None:
        for _ in range(4):
            await asyncio.sleep(0)

    async def run(self, mode: str, tokens: int, thinking: int = 0) -> None:
        """Until it has all its tokens."""
        scheduler, done, asked, first = self.scheduler, 0, self.now, True
        claim = scheduler.claim(mode)
        while done < tokens:
            async with scheduler.place(claim, thinking=done < thinking, can_set_back=True) as place:
                if first:
                    first = False
                    self.waited[mode].append(self.now - asked)
                while done < tokens and not place.revoked:
                    await self._stepped.wait()
                    done += 1
                    scheduler.count(place, 1)
                    self.thought += mode == THINKS
                    if done == thinking:
                        scheduler.answers(place, can_set_back=True)


async def think_again_and_again(engine: Engine, tokens: int) -> None:
    """As one thinker of the load: a quarter of its tokens are answer, and it asks again when it is answered."""
    while True:
        await engine.run(THINKS, tokens, 3 * tokens // 4)


async def load(thinkers: int, steps: int, lengths: range, *, direct: bool) -> Engine:
    """Thinkers of these lengths in turn for so many steps, and direct requests beside them from ALONE on, or none."""
    engine = Engine()
    thinking = [
        asyncio.create_task(think_again_and_again(engine, lengths[number % len(lengths)])) for number in range(thinkers)
    ]
    for _ in range(steps):
        if direct and engine.now >= ALONE and engine.now % (STEPS_A_SECOND // DIRECT_A_SECOND) == 0:
            engine.ask(DIRECT, DIRECT_TOKENS)
        await engine.step()
    for task in thinking:
        task.cancel()
    await asyncio.gather(*thinking, return_exceptions=True)
    await engine.end()
    return engine


@pytest.mark.parametrize("lengths", [range(256, 257), range(160, 352, 12)], ids=["in step", "mixed"])
@pytest.mark.parametrize("thinkers", [64, 512, 1024])
async def test_direct_requests_have_a_place_at_once_and_thinkers_lose_little(thinkers: int, lengths: range) -> None:
    """Thinkers of one length close their thinking all at once, and then all answer."""
    alone = await load(thinkers, 600, lengths, direct=False)
    beside = await load(thinkers, 600, lengths, direct=True)
    assert len(beside.waited[DIRECT]) == 80
    assert max(beside.waited[DIRECT]) == 0
    assert beside.thought >= 0.95 * alone.thought


async def test_a_burst_of_direct_requests_waits_for_one_step() -> None:
    """While thinkers have all that they may: the places that they leave at once, theirs when they were set back."""
    engine = Engine()
    for number in range(512):
        engine.ask(THINKS, 10_000, 5_000 if number % 2 else 1)
    for _ in range(3):
        await engine.step()
    for _ in range(PLACES - PLACES // KEPT_SHARE):
        engine.ask(DIRECT, DIRECT_TOKENS)
    for _ in range(3):
        await engine.step()
    free = PLACES // FREE_SHARE
    assert sorted(engine.waited[DIRECT]) == [0] * free + [1] * (PLACES - PLACES // KEPT_SHARE - free)
    await engine.end()


@pytest.mark.parametrize("places", [2, 8, 64])
async def test_no_thinker_waits_longer_than_its_share_of_the_whole(places: int) -> None:
    """Beside more direct requests than there are places for: so many thinkers as there are, in turn on what they keep.

    The bound is that of the scheduler's docstring.
    """
    engine, tokens, thinkers = Engine(places), 40, 4 * places
    kept = max(1, places // KEPT_SHARE)
    for _ in range(thinkers):
        engine.ask(THINKS, tokens, 30)
    thinking = list(engine.tasks)
    for _ in range(places):
        engine.ask(DIRECT, DIRECT_TOKENS)
    while not all(task.done() for task in thinking):
        engine.ask(DIRECT, DIRECT_TOKENS)
        engine.ask(DIRECT, DIRECT_TOKENS)
        await engine.step()
        assert engine.now <= tokens * (thinkers / kept + 1)
    assert len(engine.waited[THINKS]) == thinkers
    assert max(engine.waited[THINKS]) < tokens * (thinkers / kept + 1)
    await engine.end()
