"""Who gets the engine's places: direct requests before thinkers, a share for each client and request, thinkers always
some.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from server.core.scheduler import FREE_SHARE, KEPT_SHARE, Claim, Lane, ModeLoad, Overdue, Place, Scheduler

PLACES = 16
FREE, KEPT = PLACES // FREE_SHARE, PLACES // KEPT_SHARE
DIRECT, THINKS = "direct", "thinks"


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class Choice:
    """One generation: it waits for a place, holds it until `end`, and where it is set back waits for another."""

    def __init__(self, scheduler: Scheduler, claim: Claim, *, can_set_back: bool = True) -> None:
        self.place: Place | None = None
        self.thinking = True
        self.set_backs = 0
        self.ended = asyncio.Event()
        self.claim = claim
        self._scheduler = scheduler
        self.can_set_back = can_set_back
        self.task = asyncio.create_task(self._run())

    def answer(self) -> None:
        """Its thinking is closed."""
        self.thinking = False
        assert self.place is not None
        self._scheduler.answers(self.place, can_set_back=self.can_set_back)

    async def _run(self) -> None:
        while not self.ended.is_set():
            place_for = self._scheduler.place
            async with place_for(self.claim, thinking=self.thinking, can_set_back=self.can_set_back) as place:
                self.place = place
                try:
                    while not (place.revoked or self.ended.is_set()):  # noqa: ASYNC110 - as a choice looks at each delta
                        await asyncio.sleep(0)
                finally:
                    self.place = None
                self.set_backs += place.revoked


@asynccontextmanager
async def scheduled(
    places: int = PLACES, *, most_direct: float = float("inf"), most_thinking: float = float("inf")
) -> AsyncIterator[tuple[Scheduler, list[Choice]]]:
    modes = {DIRECT: ModeLoad(thinks=False, most=most_direct), THINKS: ModeLoad(thinks=True, most=most_thinking)}
    scheduler, choices = Scheduler(lambda: places, modes), list[Choice]()
    yield scheduler, choices
    for choice in choices:
        choice.task.cancel()
    await asyncio.gather(*(choice.task for choice in choices), return_exceptions=True)
    assert [scheduler.running(lane) for lane in Lane] == [0, 0, 0]
    assert [scheduler.waiting(lane) for lane in Lane] == [0, 0, 0]
    assert [(mode.running, mode.waiting) for mode in modes.values()] == [(0, 0), (0, 0)]


def thinkers(scheduler: Scheduler) -> int:
    return scheduler.running(Lane.THINK) + scheduler.running(Lane.ANSWER)


async def test_thinkers_leave_places_that_a_direct_request_gets_at_once() -> None:
    async with scheduled() as (scheduler, choices):
        choices += [Choice(scheduler, scheduler.claim(THINKS)) for _ in range(100)]
        await settle()
        assert scheduler.running(Lane.THINK) == PLACES - FREE
        direct = Choice(scheduler, scheduler.claim(DIRECT))
        choices.append(direct)
        await settle()
        assert direct.place is not None
        assert not any(choice.set_backs for choice in choices)


async def test_thinkers_that_answer_keep_their_place_and_leave_the_free_ones() -> None:
    async with scheduled() as (scheduler, choices):
        choices += [Choice(scheduler, scheduler.claim(THINKS)) for _ in range(100)]
        await settle()
        places = [choice.place for choice in choices if choice.place is not None]
        for choice in choices[: PLACES - FREE]:
            choice.answer()
        await settle()
        assert [choice.place for choice in choices if choice.place is not None] == places
        assert (scheduler.running(Lane.ANSWER), scheduler.running(Lane.THINK)) == (PLACES - FREE, 0)
        choices += [direct := Choice(scheduler, scheduler.claim(DIRECT)) for _ in range(FREE)]
        await settle()
        assert direct.place is not None


async def test_those_that_think_are_set_back_before_those_that_answer_and_the_youngest_first() -> None:
    async with scheduled() as (scheduler, choices):
        choices += [Choice(scheduler, scheduler.claim(THINKS)) for _ in range(PLACES - FREE)]
        await settle()
        answering = choices[-6:]
        for choice in answering:
            choice.answer()
        direct = [Choice(scheduler, scheduler.claim(DIRECT)) for _ in range(FREE + 10)]
        choices.extend(direct)
        await settle()
        staying = [choice for choice in choices if choice.place is not None and choice not in direct]
        assert staying == answering[:KEPT]
        assert all(choice.place is not None for choice in direct)
        direct[0].ended.set()
        await settle()
        assert answering[KEPT].place is not None


async def test_the_youngest_thinkers_are_set_back_for_direct_requests_and_some_always_stay() -> None:
    async with scheduled() as (scheduler, choices):
        thinking = [Choice(scheduler, scheduler.claim(THINKS)) for _ in range(PLACES)]
        await settle()
        direct = [Choice(scheduler, scheduler.claim(DIRECT)) for _ in range(100)]
        choices.extend(thinking + direct)
        await settle()
        assert (thinkers(scheduler), scheduler.running(Lane.DIRECT)) == (KEPT, PLACES - KEPT)
        assert [one.place is not None for one in thinking] == [*[True] * KEPT, *[False] * (PLACES - KEPT)]
        for choice in direct:
            choice.ended.set()
        for _ in range(20):
            await settle()
        assert scheduler.running(Lane.THINK) == PLACES - FREE


async def test_what_thinkers_keep_goes_to_another_of_them_when_one_ends() -> None:
    async with scheduled() as (scheduler, choices):
        thinking = [Choice(scheduler, scheduler.claim(THINKS)) for _ in range(3 * PLACES)]
        choices.extend(thinking)
        choices += [Choice(scheduler, scheduler.claim(DIRECT)) for _ in range(3 * PLACES)]
        await settle()
        for number, choice in enumerate(thinking):
            assert choice.place is not None, number
            choice.ended.set()
            await settle()
            assert thinkers(scheduler) == min(KEPT, len(thinking) - number - 1)


async def test_thinkers_that_cannot_be_set_back_keep_their_places() -> None:
    async with scheduled() as (scheduler, choices):
        choices += [Choice(scheduler, scheduler.claim(THINKS), can_set_back=False) for _ in range(PLACES)]
        await settle()
        choices += [Choice(scheduler, scheduler.claim(DIRECT)) for _ in range(PLACES)]
        await settle()
        assert not any(choice.set_backs for choice in choices)
        assert scheduler.running(Lane.DIRECT) == FREE


async def test_an_answer_that_cannot_be_set_back_is_not_though_its_thinking_could_be() -> None:
    async with scheduled() as (scheduler, choices):
        choices += [one := Choice(scheduler, scheduler.claim(THINKS)) for _ in range(PLACES - FREE)]
        await settle()
        assert one.place is not None
        scheduler.answers(one.place, can_set_back=False)
        choices += [Choice(scheduler, scheduler.claim(DIRECT)) for _ in range(PLACES)]
        await settle()
        assert one.set_backs == 0
        assert thinkers(scheduler) == KEPT


async def test_a_request_of_many_choices_shares_with_one_that_comes_later() -> None:
    for mode in (DIRECT, THINKS):
        async with scheduled() as (scheduler, choices):
            greedy = scheduler.claim(mode)
            choices += [Choice(scheduler, greedy) for _ in range(128)]
            await settle()
            late = scheduler.claim(mode)
            choices += [Choice(scheduler, late) for _ in range(3)]
            for _ in range(10):
                await settle()
            assert late.held == 3
            other = scheduler.claim(mode)
            choices += [Choice(scheduler, other) for _ in range(128)]
            for _ in range(40):
                await settle()
            assert abs(other.held - greedy.held) <= 1


async def test_a_choice_of_a_request_whose_others_have_ended_goes_before_what_came_later() -> None:
    async with scheduled(places=2) as (scheduler, choices):
        first = scheduler.claim(DIRECT)
        choices += [Choice(scheduler, first) for _ in range(3)]
        await settle()
        later = [Choice(scheduler, scheduler.claim(DIRECT), can_set_back=False) for _ in range(6)]
        choices.extend(later)
        await settle()
        for choice in choices[:2]:
            choice.ended.set()
        for one in later[:3]:
            await settle()
            one.ended.set()
        await settle()
        assert choices[2].place is not None


async def test_choices_that_cannot_be_set_back_leave_half_to_others() -> None:
    async with scheduled() as (scheduler, choices):
        greedy = scheduler.claim(DIRECT)
        choices += [Choice(scheduler, greedy, can_set_back=False) for _ in range(128)]
        await settle()
        assert greedy.held == PLACES // 2
        choices += [one := Choice(scheduler, scheduler.claim(DIRECT), can_set_back=False)]
        await settle()
        assert one.place is not None


async def test_no_thinker_is_set_back_for_choices_that_could_not_take_its_place() -> None:
    async with scheduled() as (scheduler, choices):
        choices += [Choice(scheduler, scheduler.claim(THINKS)) for _ in range(PLACES - FREE)]
        await settle()
        greedy = scheduler.claim(DIRECT)
        choices += [Choice(scheduler, greedy, can_set_back=False) for _ in range(128)]
        for _ in range(10):
            await settle()
        assert (greedy.held, thinkers(scheduler)) == (PLACES // 2, PLACES // 2)


async def test_clients_share_whatever_number_of_requests_they_have() -> None:
    for mode, places in ((DIRECT, PLACES), (THINKS, PLACES - FREE)):
        async with scheduled() as (scheduler, choices):
            many = [Choice(scheduler, scheduler.claim(mode, "many")) for _ in range(100)]
            choices.extend(many)
            await settle()
            few = [Choice(scheduler, scheduler.claim(mode, "few")) for _ in range(places)]
            choices.extend(few)
            for _ in range(40):
                await settle()
            assert many[0].claim.share.held == few[0].claim.share.held == places // 2


async def test_the_client_that_was_given_the_fewest_tokens_is_next() -> None:
    async with scheduled(places=1) as (scheduler, choices):
        order = []
        for client in ("long", "short"):
            choices += [Choice(scheduler, scheduler.claim(DIRECT, client), can_set_back=False) for _ in range(6)]
        await settle()
        for _ in range(8):
            (running,) = (choice for choice in choices if choice.place is not None)
            client = "long" if choices.index(running) < 6 else "short"
            order.append(client)
            scheduler.count(running.place, {"long": 300, "short": 100}[client])  # type: ignore[arg-type]
            running.ended.set()
            await settle()
        assert order == ["long", *["short"] * 3, "long", *["short"] * 3]


async def test_a_client_that_comes_back_saves_nothing_up() -> None:
    async with scheduled(places=1) as (scheduler, choices):
        for number in range(10):
            choices.append(Choice(scheduler, scheduler.claim(DIRECT, "one", prompt_tokens=1000)))
            await settle()
            choices[number].ended.set()
            await settle()
        one = [Choice(scheduler, scheduler.claim(DIRECT, "one", prompt_tokens=1000)) for _ in range(4)]
        new = [Choice(scheduler, scheduler.claim(DIRECT, "new", prompt_tokens=1000)) for _ in range(4)]
        choices.extend(one + new)
        for _ in range(4):
            await settle()
            next(choice for choice in one + new if choice.place is not None).ended.set()
        await settle()
        assert 1 <= sum(choice.ended.is_set() for choice in one) <= 3


async def test_a_mode_runs_no_more_than_it_may_and_shares_that() -> None:
    async with scheduled(most_direct=4, most_thinking=6) as (scheduler, choices):
        for mode in (DIRECT, THINKS):
            choices += [Choice(scheduler, scheduler.claim(mode, "a")) for _ in range(20)]
        await settle()
        assert [mode.running for mode in scheduler.modes.values()] == [4, 6]
        late = [Choice(scheduler, scheduler.claim(mode, "b")) for mode in (DIRECT, THINKS) for _ in range(20)]
        choices.extend(late)
        for _ in range(20):
            await settle()
        assert [mode.running for mode in scheduler.modes.values()] == [4, 6]
        assert [late[0].claim.share.held, late[-1].claim.share.held] == [2, 3]


async def test_a_lower_priority_number_goes_first_and_is_not_set_back_for_a_higher() -> None:
    async with scheduled(places=4) as (scheduler, choices):
        important = [Choice(scheduler, scheduler.claim(THINKS, priority=-1)) for _ in range(4)]
        choices.extend(important)
        choices += [Choice(scheduler, scheduler.claim(DIRECT)) for _ in range(4)]
        await settle()
        assert not any(choice.set_backs for choice in important)
        urgent = Choice(scheduler, scheduler.claim(THINKS, priority=-2))
        choices.append(urgent)
        await settle()
        important[0].ended.set()
        await settle()
        assert urgent.place is not None


async def test_who_leaves_while_it_waits_leaves_nothing_behind() -> None:
    async with scheduled(places=1) as (scheduler, choices):
        choices += [Choice(scheduler, scheduler.claim(DIRECT)) for _ in range(3)]
        await settle()
        choices[1].task.cancel()
        await settle()
        assert scheduler.waiting(Lane.DIRECT) == 1
        choices[0].ended.set()
        await settle()
        assert choices[2].place is not None


async def test_only_a_request_that_never_had_a_place_is_given_up() -> None:
    async with scheduled(places=1) as (scheduler, choices):
        started, waiting = scheduler.claim(DIRECT), scheduler.claim(DIRECT)
        choices += [Choice(scheduler, started, can_set_back=False) for _ in range(3)]
        choices += [Choice(scheduler, waiting) for _ in range(2)]
        await settle()
        scheduler.give_up(started)
        scheduler.give_up(waiting)
        await settle()
        assert [choice.task.done() for choice in choices] == [False, False, False, True, True]
        assert all(isinstance(choice.task.exception(), Overdue) for choice in choices[3:])
        assert scheduler.waiting(Lane.DIRECT) == 2
        for choice in choices[:3]:
            choice.ended.set()
            await settle()
        assert all(choice.task.done() for choice in choices)


EVENT = st.one_of(
    st.tuples(
        st.just("comes"), st.sampled_from([DIRECT, THINKS]), st.integers(1, 6), st.booleans(), st.sampled_from("ab"),
        st.integers(-1, 1),
    ),
    st.tuples(st.sampled_from(["answers", "ends", "leaves"]), st.integers(0, 99)),
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(st.lists(EVENT, max_size=12), st.integers(1, 9), st.integers(1, 5) | st.none())
def test_whatever_comes(events: list[tuple[Any, ...]], places: int, most: int | None) -> None:
    """Places are never exceeded, none stays free for nothing, no direct request waits for places that thinkers could
    give up, and everybody gets a turn.
    """

    async def run() -> None:
        limit = float("inf") if most is None else most
        async with scheduled(places, most_direct=limit, most_thinking=limit) as (scheduler, choices):
            for event in events:
                if event[0] == "comes":
                    _, mode, n, can_set_back, client, priority = event
                    claim = scheduler.claim(mode, client, priority=priority)
                    choices += [Choice(scheduler, claim, can_set_back=can_set_back) for _ in range(n)]
                else:
                    act(event[0], [one for one in choices if not one.task.done()], event[1])
                await settle()
                assert sum(map(scheduler.running, Lane)) <= places
                for _ in range(places):
                    await settle()
                check(scheduler, choices, places)
            await all_end(scheduler, choices, places)

    asyncio.run(run())


def act(how: str, choices: list[Choice], index: int) -> None:
    """One of the choices moves on, or is broken off."""
    if not choices:
        return
    choice = choices[index % len(choices)]
    if how == "leaves":
        choice.task.cancel()
    elif choice.place is None:
        return
    elif how == "ends":
        choice.ended.set()
    elif choice.thinking and choice.place.lane is Lane.THINK:
        choice.answer()


def check(scheduler: Scheduler, choices: list[Choice], places: int) -> None:
    """What holds whenever nothing moves."""
    running = [choice for choice in choices if choice.place is not None]
    waiting = [choice for choice in choices if choice.place is None and not choice.task.done()]
    assert len(running) == sum(map(scheduler.running, Lane)) <= places
    thinking = [choice for choice in running if choice.claim.share.mode.thinks]
    kept = max(places // KEPT_SHARE, int(places > 1))
    assert len(thinking) <= max(1, places - places // FREE_SHARE)
    for choice in waiting:
        mode = choice.claim.share.mode
        if mode.running >= mode.most or (choice.claim.held >= max(1, places // 2) and not choice.can_set_back):
            continue
        if mode.thinks:
            assert len(running) == places or len(thinking) == max(1, places - places // FREE_SHARE)
            continue
        assert len(running) == places or len(thinking) < kept
        able = [one for one in thinking if one.can_set_back and one.claim.priority >= choice.claim.priority]
        assert not able or len(thinking) <= kept


async def all_end(scheduler: Scheduler, choices: list[Choice], places: int) -> None:
    """Each has a turn, and then ends."""
    left = {choice for choice in choices if not choice.task.done()}
    for _ in range(10 * len(choices) + 10):
        await settle()
        assert sum(map(scheduler.running, Lane)) <= places
        for choice in [choice for choice in left if choice.place is not None]:
            choice.ended.set()
            left.remove(choice)
    assert not left
