"""The fit of an engine finds the rule that made its points, and the check sees a simulation that is off."""

import asyncio
from dataclasses import dataclass, replace

import pytest

from benchmarks import fleet_fit
from benchmarks.fleet_fit import Found, Measured, Single, compared, fit, fitted, found_by_simulation, replicas_of
from benchmarks.load.accounting import Sample
from server.commands.fleet.simulation import Engine, Own, Simulation

RULE = Engine(step=0.01, row=0.0005, read=0.0002, places=32)


def test_a_fit_finds_the_rule() -> None:
    steps = [(float(n), RULE.step + RULE.row * n) for n in (1, 8, 32)]
    reads = [(float(n), 0.02 + RULE.read * n) for n in (100, 1000, 4000)]
    found = fitted(steps, reads, 2, 32)
    assert (found.engine.step, found.engine.row, found.engine.read) == pytest.approx((RULE.step, RULE.row, RULE.read))
    assert found.error == pytest.approx(0.0, abs=1e-9)
    assert found.engine.at_once == 3


def test_steps_that_grow_shorter_with_more_streams_have_no_slope() -> None:
    found = fitted([(1.0, 0.011), (8.0, 0.009)], [(1.0, 0.1), (2.0, 0.1)], 1, 8)
    assert (found.engine.row, found.engine.read) == (0.0, 0.0)
    assert found.engine.step == pytest.approx(0.01)


def sample(
    prompt: int, length: int, *, thinks: bool, first: float = 0.0, ended: float = 0.0, error: str | None = None
) -> Sample:
    """That began at 0."""
    return Sample(
        thinks=thinks,
        started=0.0,
        first=first,
        first_answer=None,
        ended=ended,
        prompt_tokens=prompt,
        cached_tokens=0,
        completion_tokens=length,
        events=length,
        error=error,
    )


@dataclass
class Ruled:
    """In the load's place: requests that take what the rule says, each in a replica of its own."""

    fails: bool = False

    async def ask(self, words: int, tokens: int, *, thinks: bool) -> Sample:
        """One that begins at 0."""
        first = 0.01 + words * RULE.read
        ended = first + (tokens - 1) * RULE.step
        return sample(words, tokens, thinks=thinks, first=first, ended=ended, error="lost" if self.fails else None)


def test_measuring_fits_what_the_server_took() -> None:
    found = asyncio.run(fit(Ruled(), 2, [1, 4], [100, 1000], 50))  # type: ignore[arg-type]
    assert (found.engine.step, found.engine.row, found.engine.read) == pytest.approx((RULE.step, 0.0, RULE.read))
    assert found.engine.places == 4
    with pytest.raises(ValueError, match="requests failed: lost"):
        asyncio.run(fit(Ruled(fails=True), 1, [1, 4], [100, 1000], 50))  # type: ignore[arg-type]


def test_the_check_is_missed_where_the_simulation_is_off() -> None:
    asked = Single(60, 8.0)
    kinds = [asked.draw(number, 0, None) for number in range(60)]  # type: ignore[arg-type]
    samples = [sample(prompt, length, thinks=kind == "reasoning") for kind, prompt, length in kinds]
    played = Measured(asked, samples)

    def found(engine: Engine) -> Found:
        return found_by_simulation(Simulation(2, engine, played, Own(2, engine)).run())

    real = found(RULE)
    assert compared(real, real)["is_within_bound"]
    slower = compared(real, found(replace(RULE, step=0.02)))
    assert not slower["is_within_bound"]
    assert slower["ratios"]["whole_p95"] > 1 + fleet_fit.BOUND


def test_replicas_are_read_from_the_metrics() -> None:
    assert replicas_of('# HELP x\ntwogear_replica_ready{engine="0"} 1.0\ntwogear_replica_ready{engine="1"} 0.0\n') == 2
    assert replicas_of("vllm:num_requests_running 0\n") == 1
