"""A generation that another takes the place of: when, with which tokens, and as if both had been asked for."""

import asyncio
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.messages import Continuation, Delta, Generate, Sampling
from engine.token_budget import TokenBudget
from server.engine_client import RequestFailed
from server.process_engine_client import ProcessEngineClient
from tests.engine.conftest import collect, prompt, request, token_ids

THINK_END = 1
FORCED = (100, 101)


@given(
    ids=st.lists(st.integers(0, 4), max_size=30),
    after=st.integers(0, 12),
    cuts=st.lists(st.integers(1, 5), min_size=30, max_size=30),
)
def test_the_place_is_taken_at_the_first_token_too_many(ids: list[int], after: int, cuts: list[int]) -> None:
    first = Generate("id", [7, 7], Sampling(max_tokens=99), 3, cache_salt="salt")
    budget = TokenBudget(first, Continuation(after, THINK_END, FORCED, Sampling(max_tokens=5)), "own", arrived=1.0)
    taken_at, at = None, 0
    for cut in cuts:
        kept = budget.feed(ids[at : at + cut])
        if kept is not None:
            assert taken_at is None
            taken_at = at + kept
        at += cut
    must = len(ids) > after and THINK_END not in ids[: after + 1]
    assert taken_at == (after + 1 if must else None)
    if must:
        expected = Generate("id", [7, 7, *ids[:after], *FORCED], Sampling(max_tokens=5), 3, cache_salt="salt")
        assert budget.second_part() == expected


ALIKE: dict[str, dict[str, Any]] = {
    "greedy": {},
    "penalties": {"presence_penalty": 1.5, "frequency_penalty": 0.5, "repetition_penalty": 1.2},
    "logprobs": {"logprobs": 2},
    "bias and least length": {"logit_bias": {60: 5.0}, "min_tokens": 6, "ignore_eos": False},
}
"""Of both parts: so the pages of the first are kept."""


def parts(deltas: list[Delta]) -> tuple[list[int], list[int]]:
    """The tokens up to where the engine went on, and those after it."""
    (place,) = [number for number, delta in enumerate(deltas, 1) if delta.goes_on]
    first, second = ([i for delta in part for i in delta.token_ids] for part in (deltas[:place], deltas[place:]))
    return first, second


CASES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "other temperature": {"temperature": 1.0, "seed": 11},
    "penalties": {"presence_penalty": 1.5, "frequency_penalty": 0.5, "repetition_penalty": 1.2},
    "grammar": {"grammar": 'start: "1" "2"* "3"', "ignore_eos": False},
    "logprobs": {"logprobs": 2},
    "bias and least length": {"logit_bias": {60: 5.0}, "min_tokens": 6, "ignore_eos": False},
}


@pytest.mark.engine
@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("case", CASES)
async def test_it_is_as_if_both_had_been_asked_for(engine: ProcessEngineClient, case: str) -> None:
    question, forced = prompt(70, seed=40), tuple(prompt(13, seed=41))
    after = 21
    answer = Sampling(**{"max_tokens": 12, "ignore_eos": True, **CASES[case]})
    plain = request(question, max_tokens=40, temperature=1.0, seed=3, logprobs=answer.logprobs)
    free = await token_ids(engine, plain)
    never = next(i for i in range(60, 99) if i not in free)
    second = request([*question, *free[:after], *forced])
    expected = await collect(engine, Generate(second.request_id, second.prompt_ids, answer))

    then = Continuation(after, never, forced, answer)
    asked = Generate(f"{plain.request_id}-again", question, plain.sampling, then=then)
    deltas = await collect(engine, asked)
    assert parts(deltas) == (free[: after + 1], [i for delta in expected for i in delta.token_ids])
    assert (deltas[-1].finish, deltas[-1].stop_token_id) == (expected[-1].finish, expected[-1].stop_token_id)
    if answer.logprobs is not None:
        entries = [entry for delta in deltas for entry in delta.logprobs or ()]
        assert len(entries) == after + 1 + 12
        for got, want in zip(entries[after + 1 :], [e for d in expected for e in d.logprobs or ()], strict=True):
            assert got.logprob == pytest.approx(want.logprob, abs=0.05)


@pytest.mark.engine
@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("case", ALIKE)
@pytest.mark.parametrize("after", [0, 26])  # within a page, and with the last of one (96 tokens)
async def test_pages_are_kept_and_nothing_changes(engine: ProcessEngineClient, case: str, after: int) -> None:
    question, forced = prompt(70, seed=40), tuple(prompt(13, seed=41))
    first = request(question, **{**ALIKE[case], "max_tokens": after + 60, "min_tokens": after + 2})
    answer = msgspec.structs.replace(first.sampling, max_tokens=40, min_tokens=ALIKE[case].get("min_tokens", 0))
    free = await collect(engine, first)
    drawn = [i for delta in free for i in delta.token_ids]
    never = next(i for i in range(1000, 1100) if i not in drawn)
    plain = Generate(f"{first.request_id}-plain", [*question, *drawn[:after], *forced], answer)
    expected = await collect(engine, plain)

    asked = Generate(
        f"{first.request_id}-again", question, first.sampling, then=Continuation(after, never, forced, answer)
    )
    deltas = await collect(engine, asked)
    place = next(number for number, delta in enumerate(deltas, 1) if delta.goes_on)
    assert all(delta.cached_tokens is None for delta in deltas[place:])  # neither ended nor looked up again
    assert parts(deltas) == (drawn[: after + 1], [i for delta in expected for i in delta.token_ids])
    assert (deltas[-1].finish, deltas[-1].stop_token_id) == (expected[-1].finish, expected[-1].stop_token_id)
    entries = [[one.logprob for delta in some for one in delta.logprobs or ()] for some in (deltas[place:], expected)]
    assert entries[0] == pytest.approx(entries[1], abs=0.05)
    again = await collect(engine, Generate(f"{first.request_id}-once more", plain.prompt_ids, answer))
    assert [i for delta in again for i in delta.token_ids] == [i for delta in expected for i in delta.token_ids]


@pytest.mark.engine
@pytest.mark.asyncio(loop_scope="session")
async def test_a_generation_that_draws_the_token_in_time_goes_on_as_it_is(engine: ProcessEngineClient) -> None:
    question = prompt(50, seed=42)
    free = await token_ids(engine, request(question, max_tokens=30))
    for place in (0, 9, 10, 11):
        after = 10
        asked = request(question, max_tokens=30)
        then = Continuation(after, free[place], (5,), Sampling(max_tokens=2))
        deltas = await collect(engine, Generate(asked.request_id, question, asked.sampling, then=then))
        goes_on = free.index(free[place]) > after
        assert any(delta.goes_on for delta in deltas) == goes_on
        if not goes_on:
            assert [i for delta in deltas for i in delta.token_ids] == free


@pytest.mark.engine
@pytest.mark.asyncio(loop_scope="session")
async def test_many_at_once_each_go_on_where_they_should(engine: ProcessEngineClient) -> None:
    never = 99999  # no token of this vocabulary
    asked = []
    for number in range(40):
        one = request(prompt(20 + number, seed=60 + number), max_tokens=64, temperature=1.0)
        then = Continuation(5 + number % 7, never, (50, 51), Sampling(max_tokens=3 + number % 5, ignore_eos=True))
        asked.append(Generate(one.request_id, one.prompt_ids, one.sampling, then=then))
    for one, deltas in zip(asked, await asyncio.gather(*(collect(engine, one) for one in asked)), strict=True):
        assert one.then is not None
        first, second = parts(deltas)
        assert (len(first), len(second)) == (one.then.after_tokens + 1, one.then.sampling.max_tokens)
        assert deltas[-1].finish == "length"


@pytest.mark.engine
@pytest.mark.asyncio(loop_scope="session")
async def test_what_cannot_follow_fails_its_request_alone(engine: ProcessEngineClient) -> None:
    one = request(prompt(20, seed=120), max_tokens=64)
    other = asyncio.create_task(token_ids(engine, request(prompt(20, seed=121), max_tokens=64)))
    bad = Continuation(5, 99999, (10**6,), Sampling(max_tokens=4))
    with pytest.raises(RequestFailed, match="outside the vocabulary"):
        await collect(engine, Generate(one.request_id, one.prompt_ids, one.sampling, then=bad))
    assert len(await other) == 64
