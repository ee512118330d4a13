"""The fit of an engine finds the rule that made its points, and the check sees a simulation that is off."""

import asyncio
from dataclasses import asdict, replace
from itertools import count
from random import Random

import pytest

from benchmarks import fleet_fit
from benchmarks.fleet_fit import (
    Fit,
    Found,
    Measured,
    Points,
    Single,
    compared,
    fitted,
    found_by_simulation,
    measure,
    middle,
    replicas_of,
)
from benchmarks.load.accounting import Sample
from server.commands.fleet.engine import Engine, Replica, Request
from server.commands.fleet.simulation import Own, Simulation
from server.commands.fleet.virtual_time import VirtualTimeLoop
from server.core.scheduler import ModeLoad, Scheduler

RULE = Engine(step=0.01, row=0.0005, read=0.0002, places=32)


def test_a_fit_finds_the_rule() -> None:
    steps = [(float(n), RULE.step + RULE.row * n) for n in (1, 8, 32)]
    reads = [(float(n), 0.06 + RULE.read * n) for n in (100, 1000, 4000)]
    found = fitted(Points(steps, reads, (200.0, 0.03 + RULE.read * 200 + RULE.row)), 2)
    assert (found.engine.step, found.engine.row, found.engine.read) == pytest.approx((RULE.step, RULE.row, RULE.read))
    assert found.error == pytest.approx(0.0, abs=1e-9)
    assert found.engine.at_once == 3
    assert found.engine.reading == pytest.approx(0.03)
    assert found.engine.latency == pytest.approx(0.06 - RULE.step - RULE.row - 0.03)


def test_steps_that_grow_shorter_with_more_streams_have_no_slope() -> None:
    found = fitted(Points([(1.0, 0.011), (8.0, 0.009)], [(1.0, 0.1), (2.0, 0.1)], (200.0, -0.01)), 1)
    assert (found.engine.row, found.engine.read, found.engine.reading) == (0.0, 0.0, 0.0)
    assert found.engine.step == pytest.approx(0.01)


def test_what_counts_is_the_median_of_rounds() -> None:
    rounds = [Points([(1.0, one)], [(100.0, 2 * one)], (200.0, 3 * one)) for one in (1.0, 9.0, 2.0)]
    assert middle(rounds) == Points([(1.0, 2.0)], [(100.0, 4.0)], (200.0, 6.0))


def sample(
    prompt: int,
    length: int,
    *,
    thinks: bool,
    started: float = 0.0,
    first: float = 0.0,
    ended: float = 0.0,
    error: str | None = None,
) -> Sample:
    """One request."""
    return Sample(
        thinks=thinks,
        started=started,
        first=first,
        first_answer=None,
        ended=ended,
        prompt_tokens=prompt,
        cached_tokens=0,
        completion_tokens=length,
        events=length,
        error=error,
    )


class Simulated:
    """In the load's place: replicas that are simulated, in turn, on a loop whose clock is, too."""

    def __init__(self, engine: Engine, replicas: int, error: str | None = None) -> None:
        self._engine = engine
        self._scheduler = Scheduler(lambda: engine.places * replicas, {"standard": ModeLoad(thinks=False)})
        self._replicas = [Replica(engine, self._scheduler, lambda _request, _tokens: None) for _ in range(replicas)]
        self._numbers = count()
        self._error = error

    async def ask(self, words: int, tokens: int, *, thinks: bool) -> Sample:
        """A request, once it has drawn so many tokens."""
        loop, number = asyncio.get_running_loop(), next(self._numbers)
        started = loop.time()
        await asyncio.sleep(self._engine.latency)
        request = Request(str(number), number, 0, "standard", words, 0, tokens, started)
        claim = self._scheduler.claim("standard", choices=1, prompt_tokens=words)
        async with self._scheduler.place(claim, thinking=False, can_set_back=True) as place:
            await self._replicas[number % len(self._replicas)].draw(request, place)
        self._scheduler.close(claim)
        return sample(
            words, tokens, thinks=thinks, started=started, first=request.first, ended=loop.time(), error=self._error
        )


def measured(engine: Engine, replicas: int, error: str | None = None) -> Fit:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        load = Simulated(engine, replicas, error)
        return fitted(runner.run(measure(load, replicas, [1, 4, 32], [100, 1000], 200)), replicas)  # type: ignore[arg-type]


@pytest.mark.parametrize("replicas", [1, 2])
def test_measuring_finds_the_engine_that_was_measured(replicas: int) -> None:
    rule = replace(RULE, reading=0.015, latency=0.004)
    found = measured(rule, replicas)
    assert found.error < 0.01
    for name in ("step", "row", "read", "places"):
        assert getattr(found.engine, name) == pytest.approx(getattr(rule, name), rel=0.01), name
    assert found.engine.reading == pytest.approx(rule.reading, rel=0.1)
    assert found.engine.latency == pytest.approx(rule.latency, abs=0.1 * rule.reading)


def test_requests_that_fail_measure_nothing() -> None:
    with pytest.raises(ValueError, match="requests failed: lost"):
        measured(RULE, 1, "lost")


def test_the_check_is_missed_where_the_simulation_is_off() -> None:
    asked = Single(60, 8.0)
    drawn = [asked.draw(number, 0, Random(0)) for number in range(60)]
    samples = [
        sample(one.prompt, one.thought + one.answer, thinks=one.kind == "reasoning", first=1.0, ended=1.0)
        for one in drawn
    ]
    played = Measured(asked, samples)

    def found(engine: Engine) -> Found:
        return found_by_simulation(Simulation(2, engine, played, Own(2, engine)).run())

    real = found(RULE)
    assert compared(real, real)["is_within_bound"]
    assert fleet_fit.check(Fit(RULE, 2, Points([], [], (0.0, 0.0)), 0.0), asked, [samples] * 3, 1)[
        "simulated"
    ] == asdict(real)
    slower = compared(real, found(replace(RULE, step=0.02)))
    assert not slower["is_within_bound"]
    assert slower["ratios"]["whole_p95"] > 1 + fleet_fit.BOUND


def test_replicas_are_read_from_the_metrics() -> None:
    assert replicas_of('# HELP x\ntwogear_replica_ready{engine="0"} 1.0\ntwogear_replica_ready{engine="1"} 0.0\n') == 2
    assert replicas_of("vllm:num_requests_running 0\n") == 1
