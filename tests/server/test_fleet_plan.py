"""`twogear plan --fleet`: the fewest replicas that meet the goals, and what is refused in one line."""

import json
from pathlib import Path

import msgspec
import pytest

from server.cli import main
from server.commands.fleet import sizing
from server.commands.fleet.sizing import EngineTimes, ModeLoad, Workload

LARGE = "tests/model_impl/configs/exaone-4.0-32b.json"
FLEET = """
turns = 2
pause = 5.0

[modes.standard]
rate = 2.0
prompt = 400
answer = 100
first_token_p95 = 1.0

[modes.reasoning]
rate = 0.5
prompt = 400
thinking = 800
answer = 100
whole_p95 = 120.0

[[engines]]
tensor_parallel = 2
step = 0.03
row = 0.0004
read = 0.0002
places = 32
"""


@pytest.fixture(scope="module")
def workload() -> Workload:
    modes = {
        "standard": ModeLoad(4.0, 300, 60, first_token_p95=0.35, whole_p95=4.4),
        "thinking": ModeLoad(0.5, 300, 60, 200, 300),
    }
    return Workload(modes, (EngineTimes(0.02, 0.001, 0.0002, places=8),), turns=1)


def test_one_replica_fewer_misses_a_goal(workload: Workload) -> None:
    (times,) = workload.engines
    found = sizing.fewest(workload, times, times.places, 100_000)
    engine = times.engine(times.places, 100_000)
    assert found.replicas > sizing.least(workload, engine) >= 1
    fewer = sizing.reached(workload, engine, found.replicas - 1)
    assert found.modes["standard"].meets(workload.modes["standard"])
    assert not fewer["standard"].meets(workload.modes["standard"])
    assert all(one.running > 0 for one in found.modes.values())


def test_a_plan_of_a_fleet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(FLEET)
    command = ["plan", LARGE, "--memory", "80GiB", "--fleet", str(path)]
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["engine"]["tensor_parallel"] == 2
    assert set(told["modes"]) == {"standard", "reasoning"}
    assert main(command) == 0
    text = capsys.readouterr().out
    assert f"{told['replicas']} replicas of 2 devices" in text
    assert "limits.running" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("tensor_parallel = 2", "tensor_parallel = 3"), "does not divide the model's 40 heads"),
        (("tensor_parallel = 2", "tensor_parallel = 1"), "have no pages for a request"),
        (("first_token_p95 = 1.0", "first_token_p95 = 0.001"), "more replicas do not help"),
        (("rate = 0.5", "rate = 0"), "rate"),
        (("answer = 100", "answers = 100"), "answers"),
        (("[modes.standard]", "[modes.standard"), "fleet.toml"),
    ],
)
def test_what_cannot_be_planned_is_one_line(
    change: tuple[str, str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(FLEET.replace(*change))
    memory = "60GiB" if "tensor_parallel = 1" in change[1] else "80GiB"
    assert main(["plan", LARGE, "--memory", memory, "--fleet", str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_each_replica_may_be_a_server_and_reading_may_cost_more(workload: Workload) -> None:
    (times,) = workload.engines
    dearer = msgspec.structs.replace(times, reading=0.05, latency=0.01)
    alone = msgspec.structs.replace(workload, servers=True)
    one, other, late = (
        sizing.reached(asked, engine.engine(8, 100_000), 3)
        for asked, engine in ((workload, times), (alone, times), (alone, dearer))
    )
    assert one != other
    assert late["standard"].first_token_p95 > other["standard"].first_token_p95 + 0.05


def test_of_several_ways_the_one_with_the_fewest_devices_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "fleet.toml"
    dearer = "\n[[engines]]\ntensor_parallel = 8\nstep = 0.03\nrow = 0.0004\nread = 0.0002\nplaces = 32\n"
    path.write_text(FLEET + dearer)
    assert main(["plan", LARGE, "--memory", "80GiB", "--fleet", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["engine"]["tensor_parallel"] == 2


def test_more_work_needs_no_fewer_replicas(workload: Workload) -> None:
    (times,) = workload.engines
    standard = msgspec.structs.replace(workload.modes["standard"], rate=8.0)
    more = msgspec.structs.replace(workload, modes=workload.modes | {"standard": standard})
    engine = times.engine(times.places, 500_000)
    assert sizing.least(more, engine) >= sizing.least(workload, engine)
