"""A turn's tokens: no budget is exceeded by one, whatever the model writes and however its deltas are cut."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_templates.think_end import ThinkEnd, TokenEnd
from engine.messages import Delta, Sampling
from server.core.choice import Advance, Choice
from server.core.generate import ChoiceRun
from server.core.scheduler import Claim, Lane, ModeLoad, Place, Scheduler
from server.modes.thinking import ThinkingPlan
from tests.fake_engine import FakeEngine, script_of

T = TypeVar("T")
THINK_END, END_OF_TURN = 1, 2
PROMPT = [9, 9, 9]
CLOSING = (THINK_END, 8)
TOKENS = st.integers(10, 99)


PLENTY = Sampling(max_tokens=200)


class UnknownToTheEngine(TokenEnd):
    """An end tag that the engine cannot watch for, as one that is ordinary text: the second generation is asked for."""

    def __init__(self, token_id: int) -> None:
        super().__init__(token_id)
        self.token_id, self._watched = None, token_id

    def feed(self, token_id: int) -> int:
        return int(token_id == self._watched)


def one_place() -> Scheduler:
    return Scheduler(lambda: 1, {"mode": ModeLoad(thinks=True)})


def run_choice(
    engine: FakeEngine, choice: Choice, read: Callable[[Advance], T], *, one_by_one: bool = False
) -> AsyncGenerator[T, None]:
    scheduler = one_place()
    return ChoiceRun(engine, scheduler, scheduler.claim("mode"), choice, "id", one_by_one=one_by_one).read(read)


def itself(advance: Advance) -> Advance:
    return advance


def play(
    ids: list[int],
    plan: ThinkingPlan | None,
    chunks: list[int],
    sampling: Sampling = PLENTY,
    *,
    one_by_one: bool = False,
    think_end: ThinkEnd | None = None,
) -> tuple[Choice, FakeEngine, list[int], int]:
    """The finished choice, the engine, the ids for the parser, and how often the thinking was closed for the model."""
    engine = FakeEngine(script_of(ids, len(PROMPT)), (END_OF_TURN,), chunks=chunks)
    choice = Choice(PROMPT, sampling, think_end or TokenEnd(THINK_END), plan)

    async def played() -> tuple[list[int], int]:
        shown, closed = [], 0
        async for advance in run_choice(engine, choice, itself, one_by_one=one_by_one):
            shown += advance.token_ids
            closed += advance.closed
        return shown, closed

    shown, closed = asyncio.run(played())
    return choice, engine, shown, closed


def test_a_natural_end_of_thinking_needs_one_generation() -> None:
    ids = [10, 11, THINK_END, 12, 13, END_OF_TURN]
    choice, engine, shown, closed = play(ids, ThinkingPlan(50, (), CLOSING, "length"), [4, 1])
    assert (shown, closed, len(engine.seen)) == (ids[:-1], 0, 1)
    assert (choice.finish, choice.thinking_finish) == ("stop", "natural")
    assert (choice.reasoning_tokens, choice.completion_tokens) == (2, 6)


def test_a_spent_budget_is_closed_with_the_wrap_up_and_the_answer_follows() -> None:
    ids = [10, 11, 12, 13, 14, 15, 16, 17, END_OF_TURN]
    choice, engine, shown, closed = play(ids, ThinkingPlan(2, (20, 21), CLOSING, "budget"), [3])
    assert engine.seen[1].prompt_ids == [*PROMPT, 10, 11, 20, 21, *CLOSING]
    assert engine.seen[1].sampling.max_tokens == 200 - 6
    assert (shown, closed) == ([10, 11, 16, 17], 1)
    assert (choice.thinking_finish, choice.reasoning_tokens, choice.completion_tokens) == ("budget", 4, 9)
    assert {request.request_id for request in engine.seen} == {"id-0"}  # the engine went on by itself
    assert engine.aborted == []


def test_the_front_end_closes_where_the_engine_cannot_know_the_end_tag() -> None:
    ids = [10, 11, 12, 13, 14, 15, 16, 17, END_OF_TURN]
    plan = ThinkingPlan(2, (20, 21), CLOSING, "budget")
    choice, engine, shown, closed = play(ids, plan, [3], think_end=UnknownToTheEngine(THINK_END))
    assert engine.seen[1].prompt_ids == [*PROMPT, 10, 11, 20, 21, *CLOSING]
    assert (shown, closed, choice.thinking_finish) == ([10, 11, 16, 17], 1, "budget")
    assert ([request.then for request in engine.seen], engine.aborted) == ([None, None], ["id-0"])


def test_thinking_told_to_end_while_the_engine_goes_on_is_closed_once() -> None:
    """Told after a token of a delta whose last would have the engine go on: what the engine then draws is dropped."""
    plan = ThinkingPlan(3, (20,), CLOSING, "budget")
    engine = FakeEngine(script_of([10, 11, 12, 13, 14, 15, 16, END_OF_TURN], len(PROMPT)), (END_OF_TURN,), chunks=[9])
    choice = Choice(PROMPT, PLENTY, TokenEnd(THINK_END), plan)

    def tell(advance: Advance) -> Advance:
        choice.end_thinking()
        return advance

    async def run() -> list[Advance]:
        return [advance async for advance in run_choice(engine, choice, tell, one_by_one=True)]

    advances = asyncio.run(run())
    assert [advance.closed for advance in advances].count(True) == 1
    assert choice.token_ids == [10, 11, 20, *CLOSING, 15, 16, END_OF_TURN]
    assert (choice.thinking_finish, engine.aborted) == ("stopped", ["id-0"])


def test_an_end_tag_right_after_the_last_allowed_token_is_natural() -> None:
    choice, engine, _, _ = play([10, 11, THINK_END, 12, END_OF_TURN], ThinkingPlan(2, (20,), CLOSING, "budget"), [1])
    assert (choice.thinking_finish, len(engine.seen)) == ("natural", 1)


def test_no_budget_means_no_thinking_generation() -> None:
    choice, engine, shown, closed = play([0, 0, 12, END_OF_TURN], ThinkingPlan(0, (), CLOSING, "budget"), [1])
    assert (shown, closed, len(engine.seen)) == ([12], 0, 1)
    assert (choice.reasoning_tokens, choice.completion_tokens) == (0, 4)


def test_a_turn_that_ends_within_the_thinking_still_gets_its_answer() -> None:
    choice, engine, shown, _ = play(
        [10, END_OF_TURN, 0, 0, 12, END_OF_TURN], ThinkingPlan(9, (), CLOSING, "length"), [2]
    )
    assert engine.seen[1].prompt_ids == [*PROMPT, 10, *CLOSING]
    assert (choice.thinking_finish, choice.finish, shown[0]) == ("stopped", "stop", 10)


def test_thinking_that_is_told_to_end_is_closed_after_the_next_tokens() -> None:
    choice = Choice(PROMPT, PLENTY, TokenEnd(THINK_END), ThinkingPlan(50, (20,), CLOSING, "length"))
    choice.feed(Delta("id", [10, 11]))
    assert choice.end_thinking()
    assert not choice.end_thinking()
    advance = choice.feed(Delta("id", [12]))
    assert (advance.token_ids, advance.closed, choice.thinking_finish) == ([12], True, "stopped")
    assert choice.generation[0] == [*PROMPT, 10, 11, 12, 20, *CLOSING]
    assert (choice.reasoning_tokens, choice.completion_tokens) == (4, 6)
    choice.feed(Delta("id", [13, END_OF_TURN], finish="stop", stop_token_id=END_OF_TURN))
    assert not choice.end_thinking()


def test_thinking_that_ends_by_itself_after_being_told_to_is_natural() -> None:
    choice = Choice(PROMPT, PLENTY, TokenEnd(THINK_END), ThinkingPlan(50, (20,), CLOSING, "length"))
    choice.end_thinking()
    assert choice.feed(Delta("id", [10, THINK_END, 12])).token_ids == [10, THINK_END, 12]
    assert choice.thinking_finish == "natural"


def test_an_answer_may_be_drawn_differently() -> None:
    engine = FakeEngine(script_of([10, THINK_END, 11, END_OF_TURN], len(PROMPT)), (END_OF_TURN,))
    answer = Sampling(max_tokens=200, temperature=0.0)
    sampling = Sampling(max_tokens=200, temperature=0.6)
    choice = Choice(PROMPT, sampling, TokenEnd(THINK_END), ThinkingPlan(50, (), CLOSING, "length"), answer=answer)

    async def run() -> list[int]:
        return [token_id async for advance in run_choice(engine, choice, itself) for token_id in advance.token_ids]

    assert asyncio.run(run()) == [10, THINK_END, 11]
    thinking, answering = (request.sampling for request in engine.seen)
    assert (thinking.temperature, thinking.stop_token_ids, thinking.max_tokens) == (0.6, (THINK_END,), 51)
    assert (answering.temperature, answering.stop_token_ids, answering.max_tokens) == (0.0, (), 198)
    assert (choice.reasoning_tokens, choice.completion_tokens, choice.thinking_finish) == (1, 4, "natural")


def test_stop_tokens_and_least_length_bind_the_answer_only() -> None:
    ids = [50, 10, THINK_END, 11, 50, 12, END_OF_TURN]
    sampling = Sampling(max_tokens=200, stop_token_ids=(50,), min_tokens=4)
    choice, engine, shown, _ = play(ids, ThinkingPlan(20, (), CLOSING, "length"), [2], sampling)
    thinking, answer = (request.sampling for request in engine.seen)
    assert (thinking.stop_token_ids, thinking.min_tokens, thinking.max_tokens) == ((THINK_END,), 0, 21)
    assert (answer.stop_token_ids, answer.min_tokens, answer.max_tokens) == ((50,), 1, 197)
    assert (shown, choice.completion_tokens, choice.finish) == ([50, 10, THINK_END, 11], 5, "stop")


def test_a_limit_too_small_for_an_answer_ends_within_the_thinking() -> None:
    choice, _, shown, closed = play(
        [10, 11, 12, 13], ThinkingPlan(2, (), CLOSING, "length"), [1], Sampling(max_tokens=2)
    )
    assert (shown, closed) == ([10, 11], 0)
    assert (choice.finish, choice.thinking_finish, choice.completion_tokens) == ("length", "length", 2)


@given(
    ids=st.lists(st.one_of(TOKENS, TOKENS, TOKENS, st.sampled_from([THINK_END, END_OF_TURN])), min_size=1, max_size=40),
    budget=st.integers(0, 40),
    wrap_up=st.integers(0, 3),
    limit=st.integers(3, 60),
    chunks=st.lists(st.integers(1, 7), min_size=1, max_size=5),
    two_generations=st.booleans(),
    one_by_one=st.booleans(),
)
def test_budgets_are_exact_and_deltas_do_not_matter(
    *, ids: list[int], budget: int, wrap_up: int, limit: int, chunks: list[int], two_generations: bool, one_by_one: bool
) -> None:
    allowed = min(budget, limit - len(CLOSING) - 1)
    said = min(wrap_up, allowed // 2)
    plan = ThinkingPlan(allowed - said, tuple(range(100, 100 + said)), CLOSING, "budget")
    sampling = Sampling(max_tokens=limit, stop_token_ids=(7,) if two_generations else ())
    choice, engine, shown, closed = play(ids, plan, chunks, sampling, one_by_one=one_by_one)

    assert choice.reasoning_tokens <= budget
    assert choice.completion_tokens <= limit
    assert closed == (choice.thinking_finish in ("budget", "stopped") and plan.max_tokens > 0)
    thought = shown[: choice.reasoning_tokens - (said if choice.thinking_finish != "natural" else 0)]
    assert THINK_END not in thought
    last = engine.seen[-1]
    written = len(last.prompt_ids) - len(PROMPT)
    assert len(engine.seen) <= 2
    assert written + last.sampling.max_tokens == limit
    for before, after in pairwise(engine.seen):
        assert after.prompt_ids[: len(before.prompt_ids) + len(thought)] == [*before.prompt_ids, *thought]

    plain, _, shown_plain, closed_plain = play(ids, plan, [1], sampling)
    assert (shown, closed) == (shown_plain, closed_plain)
    assert (choice.completion_tokens, choice.reasoning_tokens) == (plain.completion_tokens, plain.reasoning_tokens)
    assert (choice.finish, choice.thinking_finish) == (plain.finish, plain.thinking_finish)


@given(
    ids=st.lists(st.one_of(TOKENS, TOKENS, TOKENS, st.sampled_from([THINK_END, END_OF_TURN])), min_size=1, max_size=40),
    thinking=st.integers(1, 20),
    chunks=st.lists(st.integers(1, 7), min_size=1, max_size=5),
    two_generations=st.booleans(),
    one_by_one=st.booleans(),
)
def test_who_closes_the_thinking_makes_no_difference(
    *, ids: list[int], thinking: int, chunks: list[int], two_generations: bool, one_by_one: bool
) -> None:
    plan = ThinkingPlan(thinking, (100, 101), CLOSING, "budget")
    sampling = Sampling(max_tokens=60, logprobs=1, min_tokens=12, stop_token_ids=(7,) if two_generations else ())
    by_engine = play(ids, plan, chunks, sampling, one_by_one=one_by_one)
    ours = play(ids, plan, chunks, sampling, one_by_one=one_by_one, think_end=UnknownToTheEngine(THINK_END))
    assert by_engine[2:] == ours[2:]
    for choice in (by_engine[0], ours[0]):
        assert (choice.token_ids, choice.reasoning_tokens) == (ours[0].token_ids, ours[0].reasoning_tokens)
        assert (choice.finish, choice.thinking_finish) == (ours[0].finish, ours[0].thinking_finish)
    if by_engine[0].thinking_finish == "budget":
        assert [(r.prompt_ids, r.sampling) for r in by_engine[1].seen[1:]] == [
            (r.prompt_ids, r.sampling) for r in ours[1].seen[1:]
        ]


def test_a_turn_without_thinking_ends_as_the_engine_does() -> None:
    choice, _, shown, _ = play([10, 11, END_OF_TURN], None, [2])
    assert (shown, choice.finish, choice.completion_tokens, choice.thinking_finish) == ([10, 11], "stop", 3, None)
    choice, _, shown, _ = play([10, 11, END_OF_TURN], None, [2], Sampling(max_tokens=2))
    assert (shown, choice.finish, choice.completion_tokens) == ([10, 11], "length", 2)


class OnePlace(Scheduler):
    """A scheduler whose place is revoked after each of these numbers of looks at it."""

    def __init__(self, looks: list[int]) -> None:
        super().__init__(lambda: 1, {"mode": ModeLoad(thinks=True)})
        self._looks = iter(looks)

    @asynccontextmanager
    async def place(self, claim: Claim, *, thinking: bool, can_set_back: bool) -> AsyncIterator[Place]:
        async with super().place(claim, thinking=thinking, can_set_back=can_set_back) as place:
            yield RevokedLater(place.claim, place.lane, can_set_back=can_set_back, looks=next(self._looks, None))

    def answers(self, place: Place, *, can_set_back: bool) -> None:
        place.lane, place.can_set_back = Lane.ANSWER, can_set_back


class RevokedLater(Place):
    def __init__(self, claim: Claim, lane: Lane, *, can_set_back: bool, looks: int | None) -> None:
        self._left = looks
        super().__init__(claim, lane, can_set_back)

    @property
    def revoked(self) -> bool:
        if self._left is None:
            return False
        self._left -= 1
        return self._left < 0

    @revoked.setter
    def revoked(self, value: bool) -> None:
        pass


@given(
    ids=st.lists(st.integers(10, 14) | st.just(THINK_END), min_size=1, max_size=30),
    budget=st.integers(0, 12),
    limit=st.integers(1, 40),
    chunks=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    looks=st.lists(st.integers(2, 6), max_size=6),
)
@pytest.mark.parametrize("think_end", [TokenEnd, UnknownToTheEngine])
def test_being_set_back_changes_no_token(
    think_end: type[TokenEnd], ids: list[int], budget: int, limit: int, chunks: list[int], *, looks: list[int]
) -> None:
    """However often, in thinking and in the answer: the same tokens, counts and ends as without."""
    plan = ThinkingPlan(budget, (20, 21), CLOSING, "budget")

    def outcome(scheduler: Scheduler) -> tuple[object, ...]:
        engine = FakeEngine(script_of([*ids, END_OF_TURN], len(PROMPT)), (END_OF_TURN,), chunks=chunks)
        choice = Choice(PROMPT, Sampling(max_tokens=limit), think_end(THINK_END), plan)
        run = ChoiceRun(engine, scheduler, scheduler.claim("mode"), choice, "id")

        async def played() -> list[int]:
            return [token_id async for advance in run.read(itself) for token_id in advance.token_ids]

        shown = asyncio.run(played())
        return shown, choice.token_ids, choice.reasoning_tokens, choice.finish, choice.thinking_finish

    assert outcome(OnePlace(looks)) == outcome(one_place())


@pytest.mark.parametrize("budget", [3, 50])
def test_the_engine_is_told_that_a_thinker_answers_in_the_generation_that_it_thought_in(budget: int) -> None:
    """Whether it closed the thinking by itself or its tokens are spent: its pages go after those of who thinks."""
    ids = [10, 11, 12, 13, 14, THINK_END, 20, 21, END_OF_TURN]
    plan = ThinkingPlan(max_tokens=budget, wrap_up=(), closing=CLOSING, bound_by="budget")
    _, engine, _, _ = play(ids, plan, [1])
    (first,) = {one.request_id for one in engine.seen}
    assert {one.priority for one in engine.seen} == {Lane.THINK}
    assert engine.prioritized == [(first, Lane.ANSWER)]
