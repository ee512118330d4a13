"""What the server's admission does in a simulated fleet, and that the clock of its event loop is a simulated one."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from statistics import quantiles

import pytest

from server.commands.fleet.engine import Engine, Request
from server.commands.fleet.simulation import Clients, Own, Simulation, Turn, Workload
from server.commands.fleet.virtual_time import VirtualTimeLoop
from server.core.scheduler import FREE_SHARE

ENGINE = Engine(places=8)
FULL = Clients(80, 4.0, turns=1, thought=600, answer=40, first_prompt=200)
"""More than two engines can do at once."""


@dataclass(frozen=True)
class Listed:
    """A conversation of one turn for each that is listed."""

    asked: Sequence[Turn]
    rate: float = 1.0
    turns: int = 1
    pause: float = 1.0

    @property
    def conversations(self) -> int:
        return len(self.asked)

    @property
    def kinds(self) -> Mapping[str, bool]:
        return {"standard": False, "reasoning": True}

    def draw(self, conversation: int, _turn: int, _rng: Random) -> Turn:
        return self.asked[conversation]


def p95(values: Sequence[float]) -> float:
    return quantiles(values, n=20)[-1]


def simulated(engine: Engine, clients: Workload, replicas: int = 2, *, servers: bool = False) -> list[Request]:
    return Simulation(replicas, engine, clients, Own(replicas, engine), servers=servers).run()


def test_hours_pass_at_once_and_in_order() -> None:
    woken: list[tuple[float, float]] = []

    async def sleeper(seconds: float) -> None:
        await asyncio.sleep(seconds)
        woken.append((seconds, asyncio.get_running_loop().time()))

    async def sleepers() -> None:
        await asyncio.gather(*map(sleeper, (7200.25, 0.5, 3600.0, 200_000.0)))

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(sleepers())
    assert [seconds for seconds, _ in woken] == [0.5, 3600.0, 7200.25, 200_000.0]
    assert [at for _, at in woken] == pytest.approx([seconds for seconds, _ in woken])


def test_what_would_wait_for_ever_is_told() -> None:
    async def wait() -> None:
        await asyncio.get_running_loop().create_future()

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner, pytest.raises(RuntimeError, match="nothing is left"):
        runner.run(wait())


@pytest.mark.parametrize("servers", [False, True])
def test_short_requests_do_not_wait_behind_thinkers(servers: bool) -> None:
    done = simulated(ENGINE, FULL, servers=servers)
    assert all(one.drawn == one.length for one in done)
    short = p95([one.first - one.arrived for one in done if one.kind == "standard"])
    thinkers = p95([one.first - one.arrived for one in done if one.kind == "reasoning"])
    assert 10 * short < thinkers
    assert any(one.set_back for one in done)
    assert not any(one.set_back for one in done if one.kind == "standard")


def test_thinkers_leave_places_free() -> None:
    done = simulated(ENGINE, replace(FULL, thinkers=1.0), replicas=1)
    changes = sorted((at, change) for one in done for at, change in ((one.first, 1), (one.ended, -1)))
    running = [0]
    for _, change in changes:
        running.append(running[-1] + change)
    assert max(running) == ENGINE.places - ENGINE.places // FREE_SHARE


def test_who_was_set_back_goes_on_from_his_pages() -> None:
    done = simulated(ENGINE, FULL, replicas=1)
    assert sum(one.set_back for one in done) > 0
    for one in done:
        assert one.prompt - one.known <= one.read <= one.prompt - one.known + one.set_back


@pytest.mark.parametrize("servers", [False, True])
def test_a_server_keeps_its_request_and_a_front_end_routes_each_generation(servers: bool) -> None:
    begun: Counter[str] = Counter()

    class Counting(Own):
        def begin(self, request: Request) -> int:
            begun[request.id] += 1
            return super().begin(request)

    done = Simulation(2, ENGINE, FULL, Counting(2, ENGINE), servers=servers).run()
    most = {one.id: 1 if servers else 1 + one.set_back for one in done}
    assert all(1 <= begun[name] <= number for name, number in most.items())
    assert (max(begun.values()) > 1) is not servers


def test_steps_that_are_simulated_together_change_nothing() -> None:
    one_by_one, together = (
        {one.id: one for one in simulated(replace(ENGINE, at_once=steps), FULL, replicas=1)} for steps in (1, 1000)
    )
    for name, one in one_by_one.items():
        other = together[name]
        assert (other.first, other.ended, other.set_back) == pytest.approx((one.first, one.ended, one.set_back)), name


def test_a_newcomer_waits_for_one_step() -> None:
    engine = replace(ENGINE, at_once=1000, read=0.0)
    asked = Listed([Turn("reasoning", 10, 5000, 10), Turn("standard", 10, 0, 5)])
    short = next(one for one in simulated(engine, asked, replicas=1) if one.kind == "standard")
    assert short.first - short.arrived <= 2 * (engine.step + 2 * engine.row) + 1e-9


def test_what_a_step_that_reads_costs_more_keeps_up_others_and_a_requests_way_does_not() -> None:
    asked = Listed([Turn("reasoning", 10, 500, 10), Turn("standard", 10, 0, 5)])

    def times(engine: Engine) -> list[float]:
        done = sorted(simulated(engine, asked, replicas=1), key=lambda one: one.arrived)
        return [one.ended - one.arrived for one in done]

    base, reading, latency = times(ENGINE), times(replace(ENGINE, reading=0.5)), times(replace(ENGINE, latency=0.5))
    assert reading == pytest.approx([base[0] + 1.0, base[1] + 0.5], abs=0.03)  # a step's phase is another
    assert latency == pytest.approx([base[0] + 0.5, base[1] + 0.5], abs=0.03)
