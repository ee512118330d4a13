"""Which replica a generation goes to, and what the router keeps of it."""

import random
from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from server import routing
from server.routing import BLOCK, FIRST_GUESS, READ_STEPS, ROW_STEPS, Router

PLACES = 8
BOTH = (0, 1)


def begin(router: Router, name: str, prompt: list[int] | None = None, **fields: Any) -> int:
    given: dict[str, Any] = {"candidates": BOTH, "limit": 10_000, "places": PLACES, **fields}
    return router.begin(name, [1, 2, 3] if prompt is None else prompt, **given)


def run(router: Router, name: str, kind: str, tokens: int) -> None:
    begin(router, name, kind=kind)
    router.drew(name, tokens)
    router.end(name, is_whole=True)


def test_equals_take_turns() -> None:
    router = Router(3)
    chosen = [begin(router, str(turn), candidates=(0, 1, 2)) for turn in range(9)]
    assert Counter(chosen) == {0: 3, 1: 3, 2: 3}
    idle = Router(2)
    assert [begin(idle, str(turn)) for turn in range(2)] == [0, 1]
    for turn in range(2):
        idle.end(str(turn), is_whole=True)
    assert begin(idle, "next") == 0  # the one that was chosen longer ago


def test_a_thinker_weighs_as_much_as_it_will_draw() -> None:
    router = Router(2)
    for turn in range(200):
        run(router, f"thought {turn}", "thinks", 1000)
        run(router, f"answer {turn}", "answers", 10)
    thinker = begin(router, "thinker", kind="thinks")
    other = 1 - thinker
    for turn in range(PLACES - 1):
        begin(router, f"short {turn}", kind="answers", candidates=(other,))
    assert router.load(thinker) > router.load(other)
    assert begin(router, "another", kind="thinks") == other  # beside seven short ones, and not beside one thinker


def test_a_limit_bounds_what_is_expected() -> None:
    router = Router(2)
    long = begin(router, "long")
    assert begin(router, "bounded", limit=5) != long
    assert router.load(1 - long) == 5
    assert router.load(long) == FIRST_GUESS


def test_a_conversation_goes_back_to_its_pages() -> None:
    router = Router(4)
    prompts = [[talk] * (BLOCK * 4) for talk in range(8)]
    homes: dict[int, int] = {}
    for turn in range(10):
        order = list(range(8))
        random.Random(turn).shuffle(order)
        for talk in order:
            prompts[talk] += [turn] * BLOCK
            home = begin(router, "one", prompts[talk], candidates=range(4), kind=str(turn))
            router.drew("one", 30)
            router.end("one", is_whole=True)
            assert homes.setdefault(talk, home) == home
    assert len(set(homes.values())) == 4


def test_it_leaves_where_reading_anew_is_cheaper() -> None:
    router = Router(2)
    prompt = [5] * (BLOCK * 4)
    home = begin(router, "first", prompt)
    router.end("first", is_whole=False)
    assert begin(router, "second", prompt) == home
    router.end("second", is_whole=False)
    router.forget(1 - home)
    company, read = 2 * ROW_STEPS * FIRST_GUESS, len(prompt) * READ_STEPS  # of each that runs there, in steps
    stays = int(read / (company - read / 2))  # where the other has none, reading keeps up half of them, and itself
    for number in range(stays):
        begin(router, f"busy {number}", candidates=(home,))
    assert begin(router, "third", prompt) == home
    router.end("third", is_whole=False)
    begin(router, "busier", candidates=(home,))
    assert begin(router, "fourth", prompt) != home


def test_an_empty_replica_draws_no_conversation_from_its_pages() -> None:
    """It will be as full as the others, which reading anew then has kept up for nothing."""
    router = Router(10)
    for number in range(144):
        begin(router, f"busy {number}", candidates=range(9), places=64)
    prompt = [5] * (BLOCK * 40)
    home = begin(router, "first", prompt, candidates=range(9), places=64)
    router.end("first", is_whole=False)
    assert begin(router, "again", [*prompt, 1, 2, 3], candidates=range(10), places=64) == home
    assert begin(router, "new", [6] * (BLOCK * 40), candidates=range(10), places=64) == 9


def test_reading_counts_for_all_that_run_beside_it() -> None:
    router = Router(2)
    for number in range(3):
        begin(router, f"busy {number}", candidates=(0,), limit=30)
    begin(router, "long", candidates=(1,))
    assert begin(router, "short prompt") == 0
    router.end("short prompt", is_whole=False)
    assert begin(router, "long prompt", [5] * BLOCK * 8) == 1


def test_where_all_places_are_taken_it_waits() -> None:
    router = Router(2)
    for number in range(PLACES):
        begin(router, f"busy {number}", candidates=(0,), limit=20)
    for number in range(PLACES - 1):
        begin(router, f"other {number}", candidates=(1,), limit=40)
    assert begin(router, "next", limit=1) == 1


def test_pages_are_those_of_one_salt_and_of_whole_blocks() -> None:
    router = Router(2)
    prompt = [5] * (BLOCK * 8)
    home = begin(router, "first", prompt, salt="a", limit=2)
    assert begin(router, "same", prompt, salt="a", limit=2) == home
    assert begin(router, "other salt", prompt, salt="b", limit=2) != home
    router.end("same", is_whole=False)
    assert begin(router, "same again", prompt, salt="a", limit=2) == home
    assert begin(router, "other text", [6, *prompt[1:]], salt="a", limit=2) != home


def test_a_replica_that_was_lost_has_no_pages() -> None:
    router = Router(2)
    prompt = [5] * (BLOCK * 8)
    home = begin(router, "first", prompt)
    router.end("first", is_whole=False)
    router.forget(home)
    assert begin(router, "second", prompt) != home


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["begin", "drew", "end"]), st.integers(1, 500))))
def test_nothing_is_left_of_what_has_ended(steps: list[tuple[int, str, int]]) -> None:
    router, running = Router(3), set()
    for number, what, tokens in steps:
        name = str(number)
        if what == "begin" and name not in running:
            begin(router, name, [number] * tokens, candidates=(0, 1, 2), limit=tokens, kind=str(number % 2))
            running.add(name)
        elif what == "drew":
            router.drew(name, tokens)
        elif what == "end":
            router.end(name, is_whole=bool(tokens % 2))
            running.discard(name)
        assert all(router.load(one) >= 0 for one in range(3))
        assert {one for one in map(str, range(10)) if router.replica_of(one) is not None} == running
    for name in running:
        router.end(name, is_whole=False)
    assert [router.load(one) for one in range(3)] == [0.0] * 3


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 4), st.booleans()), max_size=60))
def test_the_choice_is_the_least_cost_of_all(steps: list[tuple[int, int, bool]]) -> None:
    router = Router(5)
    for number, (talk, blocks, stays) in enumerate(steps):
        prompt = [talk] * (BLOCK * blocks)
        keys, expected = list(routing._blocks(prompt, None)), router._mean("")
        mean = len(router._running) / 5
        costs = [routing._cost(one, keys, len(prompt), 3, expected, mean=mean) for one in router._replicas]
        turns = [one.turn for one in router._replicas]
        chosen = begin(router, str(number), prompt, candidates=range(5), places=3)
        assert chosen == min(range(5), key=lambda one: (costs[one], turns[one]))
        router.drew(str(number), 40 * blocks)
        if not stays:
            router.end(str(number), is_whole=True)
