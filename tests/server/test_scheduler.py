"""Who gets the engine's places: answers before thinkers, a share for every request, and thinkers never without any."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hypothesis import given, settings
from hypothesis import strategies as st

from server.core.scheduler import FREE_SHARE, KEPT_SHARE, Claim, Lane, Place, Scheduler

PLACES = 16


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class Choice:
    """One generation: it waits for a place, holds it until `end`, and where it is set back waits for another."""

    def __init__(self, scheduler: Scheduler, claim: Claim, lane: Lane, *, can_set_back: bool = True) -> None:
        self.place: Place | None = None
        self.set_backs = 0
        self.ended = asyncio.Event()
        self._scheduler = scheduler
        self._claim = claim
        self._lane = lane
        self._can_set_back = can_set_back
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while not self.ended.is_set():
            async with self._scheduler.place(self._claim, self._lane, can_set_back=self._can_set_back) as place:
                self.place = place
                while not (place.revoked or self.ended.is_set()):  # noqa: ASYNC110 - as a choice looks at each delta
                    await asyncio.sleep(0)
                self.set_backs += place.revoked
                self.place = None


@asynccontextmanager
async def scheduled(places: int = PLACES) -> AsyncIterator[tuple[Scheduler, list[Choice]]]:
    scheduler, choices = Scheduler(lambda: places), list[Choice]()
    yield scheduler, choices
    for choice in choices:
        choice.task.cancel()
    await asyncio.gather(*(choice.task for choice in choices), return_exceptions=True)
    assert [scheduler.running(lane) for lane in Lane] == [0, 0]
    assert [scheduler.waiting(lane) for lane in Lane] == [0, 0]


async def test_thinkers_leave_places_that_an_answer_gets_at_once() -> None:
    async with scheduled() as (scheduler, choices):
        choices += [Choice(scheduler, scheduler.claim(), Lane.THINK) for _ in range(100)]
        await settle()
        assert scheduler.running(Lane.THINK) == PLACES - PLACES // FREE_SHARE
        answer = Choice(scheduler, scheduler.claim(), Lane.ANSWER)
        choices.append(answer)
        await settle()
        assert answer.place is not None
        assert not any(choice.set_backs for choice in choices)


async def test_the_youngest_thinkers_are_set_back_for_answers_and_some_always_stay() -> None:
    async with scheduled() as (scheduler, choices):
        thinkers = [Choice(scheduler, scheduler.claim(), Lane.THINK) for _ in range(PLACES)]
        await settle()
        answers = [Choice(scheduler, scheduler.claim(), Lane.ANSWER) for _ in range(100)]
        choices.extend(thinkers + answers)
        await settle()
        assert scheduler.running(Lane.THINK) == PLACES // KEPT_SHARE
        assert scheduler.running(Lane.ANSWER) == PLACES - PLACES // KEPT_SHARE
        assert [thinker.place is not None for thinker in thinkers] == [
            *[True] * (PLACES // KEPT_SHARE), *[False] * (PLACES - PLACES // KEPT_SHARE),
        ]  # fmt: skip
        for answer in answers:
            answer.ended.set()
        for _ in range(20):
            await settle()
        assert scheduler.running(Lane.THINK) == PLACES - PLACES // FREE_SHARE


async def test_thinkers_that_cannot_be_set_back_keep_their_places() -> None:
    async with scheduled() as (scheduler, choices):
        choices += [Choice(scheduler, scheduler.claim(), Lane.THINK, can_set_back=False) for _ in range(PLACES)]
        await settle()
        choices += [Choice(scheduler, scheduler.claim(), Lane.ANSWER) for _ in range(PLACES)]
        await settle()
        assert not any(choice.set_backs for choice in choices)
        assert scheduler.running(Lane.ANSWER) == PLACES // FREE_SHARE


async def test_a_request_of_many_choices_shares_with_one_that_comes_later() -> None:
    for lane in Lane:
        async with scheduled() as (scheduler, choices):
            greedy = scheduler.claim()
            choices += [Choice(scheduler, greedy, lane) for _ in range(128)]
            await settle()
            late = scheduler.claim()
            choices += [Choice(scheduler, late, lane) for _ in range(3)]
            for _ in range(10):
                await settle()
            assert late.held == 3
            other = scheduler.claim()
            choices += [Choice(scheduler, other, lane) for _ in range(128)]
            for _ in range(40):
                await settle()
            assert abs(other.held - greedy.held) <= 1


async def test_choices_that_cannot_be_set_back_leave_half_to_others() -> None:
    async with scheduled() as (scheduler, choices):
        greedy = scheduler.claim()
        choices += [Choice(scheduler, greedy, Lane.ANSWER, can_set_back=False) for _ in range(128)]
        await settle()
        assert greedy.held == PLACES // 2
        choices += [one := Choice(scheduler, scheduler.claim(), Lane.ANSWER, can_set_back=False)]
        await settle()
        assert one.place is not None


async def test_a_thinker_that_answers_makes_room_for_another_thinker() -> None:
    async with scheduled() as (scheduler, choices):
        choices += [Choice(scheduler, scheduler.claim(), Lane.THINK) for _ in range(20)]
        await settle()
        most = PLACES - PLACES // FREE_SHARE
        assert scheduler.running(Lane.THINK) == most
        first = choices[0].place
        assert first is not None
        scheduler.answers(first)
        await settle()
        assert (scheduler.running(Lane.THINK), scheduler.running(Lane.ANSWER)) == (most, 1)


async def test_who_leaves_while_it_waits_leaves_nothing_behind() -> None:
    async with scheduled(places=1) as (scheduler, choices):
        choices += [Choice(scheduler, scheduler.claim(), Lane.ANSWER) for _ in range(3)]
        await settle()
        choices[1].task.cancel()
        await settle()
        assert scheduler.waiting(Lane.ANSWER) == 1
        choices[0].ended.set()
        await settle()
        assert choices[2].place is not None


@settings(max_examples=50)
@given(st.lists(st.tuples(st.sampled_from(Lane), st.integers(1, 12), st.booleans()), max_size=6), st.integers(1, 9))
def test_every_choice_gets_its_turn(requests: list[tuple[Lane, int, bool]], places: int) -> None:
    """With any mixture; never more places than there are."""

    async def run() -> None:
        async with scheduled(places) as (scheduler, choices):
            for lane, n, can_set_back in requests:
                claim = scheduler.claim()
                choices += [Choice(scheduler, claim, lane, can_set_back=can_set_back) for _ in range(n)]
            left = set(choices)
            for _ in range(5000):
                if not left:
                    break
                await asyncio.sleep(0)
                assert sum(map(scheduler.running, Lane)) <= places
                for choice in [choice for choice in left if choice.place is not None]:
                    choice.ended.set()
                    left.remove(choice)
            assert not left

    asyncio.run(run())
