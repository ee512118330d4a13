"""The simulation of a fleet is the same each time, loses nothing, and sees what ways of routing are known for."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks import fleet_plot
from benchmarks.fleet import POLICIES, Figures, Timed, figures
from server.commands.fleet.engine import Engine, Request
from server.commands.fleet.simulation import Clients, Own, Simulation

ENGINE = Engine(places=8, cache=60_000)
CLIENTS = Clients(40, 1.0, turns=3, thought=300, answer=40)


def told(policy: str, clients: Clients = CLIENTS, replicas: int = 2, *, servers: bool = False) -> Figures:
    simulation = Simulation(replicas, ENGINE, clients, POLICIES[policy](replicas, ENGINE), servers=servers)
    return figures(policy, replicas, simulation.run())


@pytest.mark.parametrize("servers", [False, True])
@pytest.mark.parametrize("policy", POLICIES)
def test_every_request_ends_and_each_run_is_the_same(policy: str, servers: bool) -> None:
    one = told(policy, servers=servers)
    assert one.requests == CLIENTS.conversations * CLIENTS.turns
    assert one == told(policy, servers=servers)
    assert 0 < one.first_direct_p50 <= one.first_direct_p95 < one.direct_p95


def test_what_choices_took_is_counted_and_changes_nothing() -> None:
    policy = Timed(POLICIES["twogear"](2, ENGINE))
    assert figures("twogear", 2, Simulation(2, ENGINE, CLIENTS, policy).run()) == told("twogear")
    assert policy.seconds > 0
    assert policy.choices >= CLIENTS.conversations * CLIENTS.turns


def test_all_policies_get_the_same_requests() -> None:
    def asked(policy: str) -> list[tuple[str, str, int, int]]:
        done = Simulation(2, ENGINE, CLIENTS, POLICIES[policy](2, ENGINE)).run()
        return sorted((one.id, one.kind, one.prompt, one.length) for one in done)

    assert len({str(asked(policy)) for policy in POLICIES}) == 1


def test_times_are_those_of_the_rule() -> None:
    alone = replace(CLIENTS, conversations=1, turns=1, thinkers=0.0)
    (only,) = Simulation(1, ENGINE, alone, POLICIES["in turn"](1, ENGINE)).run()
    steps = only.length + -(-only.prompt // ENGINE.chunk) - 1  # the last that reads draws, too
    expected = steps * ENGINE.step + only.length * ENGINE.row + only.prompt * ENGINE.read
    assert only.ended - only.arrived == pytest.approx(expected)


def test_a_conversation_that_stays_finds_its_pages() -> None:
    shares = {policy: told(policy).cached for policy in POLICIES}
    assert shares["twogear"] > shares["in turn"]
    assert shares["twogear"] > shares["fewest requests"]
    assert shares["hash of the conversation"] > shares["in turn"]


def test_the_router_ends_with_nothing_to_come() -> None:
    policy = Own(2, ENGINE)
    done: list[Request] = Simulation(2, ENGINE, CLIENTS, policy).run()
    assert {one.replica for one in done} == {0, 1}
    assert [policy.router.load(one) for one in (0, 1)] == [0.0, 0.0]


def test_a_plot_names_every_way_of_routing(tmp_path: Path) -> None:
    shown = [asdict(told(policy, replicas=replicas)) for policy in ("twogear", "in turn") for replicas in (2, 3)]
    fleet_plot.draw(shown, tmp_path / "fleet.svg")
    text = (tmp_path / "fleet.svg").read_text()
    assert all(name in text for name in ("twogear", "in turn", "replicas (simulated)"))
