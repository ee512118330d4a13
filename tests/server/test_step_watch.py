"""How much silence of an engine is plausible; the clock is the test's."""

import pytest

from server import step_watch
from server.step_watch import FACTOR, FIRST_SIGNS, LEAST, RECENT, TICK, LoadWatch, StepWatch

MOST = 300.0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(step_watch, "time", clock)
    return clock


def steps(watch: StepWatch, clock: Clock, number: int, seconds: float, due: int = 0) -> None:
    """So many steps of that length."""
    for _ in range(number):
        watch.tick(0.0, works=True, due=due)
        clock.now += seconds
        watch.sign(works=True)


def silent(watch: StepWatch, due: int = 0) -> float:
    """Seconds of silence until the engine counts as hung."""
    seconds = 0.0
    while not watch.tick(TICK, works=True, due=due):
        seconds += TICK
    return seconds


def test_the_first_steps_may_take_the_most(clock: Clock) -> None:
    watch = StepWatch(MOST)
    steps(watch, clock, FIRST_SIGNS - 1, 0.01)
    assert silent(watch) == MOST


def test_short_steps_are_missed_after_the_least(clock: Clock) -> None:
    watch = StepWatch(MOST)
    steps(watch, clock, 100, 0.01)
    assert silent(watch) == LEAST


def test_long_steps_may_be_a_multiple_longer_but_not_above_the_most(clock: Clock) -> None:
    watch = StepWatch(MOST)
    steps(watch, clock, 100, 4.0)
    assert silent(watch) == FACTOR * 4.0
    steps(watch, clock, 100, 40.0)
    assert silent(watch) == MOST


def test_what_was_long_ago_does_not_count(clock: Clock) -> None:
    watch = StepWatch(MOST)
    steps(watch, clock, 10, 5.0)
    steps(watch, clock, 1000, 3 * RECENT / 1000)
    assert silent(watch) == LEAST


def test_a_prompt_longer_than_any_yet_has_time_in_proportion(clock: Clock) -> None:
    watch = StepWatch(MOST)
    steps(watch, clock, 100, 1.0, due=1000)
    assert silent(watch, due=1000) == LEAST
    watch.sign(works=True)
    assert silent(watch, due=10_000) == FACTOR * 10.0


def test_without_work_there_is_no_silence(clock: Clock) -> None:
    watch = StepWatch(MOST)
    steps(watch, clock, 100, 0.01)
    assert not any(watch.tick(TICK, works=False, due=0) for _ in range(10_000))
    assert silent(watch) == LEAST


def test_an_idle_hour_is_no_long_step(clock: Clock) -> None:
    watch = StepWatch(MOST)
    steps(watch, clock, 100, 0.01)
    watch.sign(works=False)
    clock.now += 3600
    watch.tick(TICK, works=True, due=0)
    watch.sign(works=True)
    assert silent(watch) == LEAST


def test_time_in_which_this_process_stood_still_does_not_count(clock: Clock) -> None:
    watch = StepWatch(MOST)
    steps(watch, clock, 100, 0.01)
    assert not watch.tick(3600.0, works=True, due=0)


def test_a_start_that_computes_may_be_silent_ten_times_as_long() -> None:
    still, computing = LoadWatch(10.0), LoadWatch(10.0)
    assert sum(not still.tick(TICK, 7) for _ in range(1000)) == 10.0 / TICK + 1
    assert sum(not computing.tick(TICK, n) for n in range(1000)) == 100.0 / TICK


def test_a_word_of_a_start_begins_its_time_anew() -> None:
    watch = LoadWatch(10.0)
    for _ in range(100):
        assert not any(watch.tick(TICK, 7) for _ in range(int(10.0 / TICK)))
        watch.sign()
