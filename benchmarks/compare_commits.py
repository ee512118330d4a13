"""What a token costs at two commits: `python -m benchmarks.compare_commits OLD [NEW]`, both servers up, loads in turn.

Each commit is checked out into a folder of its own and served from there with this environment's packages and today's
embedded model. The two take the same loads alternately, so that whatever else the machine does falls on both; a server
that waits costs nothing. Writes the raw samples as `twogear bench` does.
"""

import argparse
import io
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.load import records
from benchmarks.load.checkpoints import checkpoint
from benchmarks.load.drive import Request
from benchmarks.load.limits import Shape
from benchmarks.load.machine import measure_apart
from benchmarks.load.records import ROOT, LoadRecord, Result, ServerRecord
from benchmarks.load.running import RunningServer, free_port
from benchmarks.load.statistics import figures
from benchmarks.load.suite import measured
from benchmarks.load.workload import MODEL_NAME, Load, Prompts, requests
from benchmarks.peers.servers import Start

OLD, NEW = "old", "new"
START_LIMIT = 600.0
LOADS = tuple(
    Load(
        streams=streams,
        mode=mode,
        prompt_tokens=100,
        output_tokens=128,
        requests=max(streams, 16),
        limit=300,
        warm_up=8,
    )
    for streams in (1, 32, 128)
    for mode in ("standard", "reasoning")
)


def main() -> int:
    """Measures, writes the file, prints its table."""
    args = _arguments()
    commits = {OLD: _sha(args.old), NEW: _sha(args.new)}
    machine = measure_apart()
    with tempfile.TemporaryDirectory(prefix="twogear-compare-") as temporary:
        in_turns = [
            record
            for number in range(args.starts)
            for record in _start(commits, args.rounds, number * args.rounds, Path(temporary, str(number)))
        ]
    result = Result(
        what="commits",
        date=records.today(),
        command=f"python -m benchmarks.compare_commits {args.old} {args.new} --starts {args.starts} "
        f"--rounds {args.rounds}",
        commit=commits[NEW],
        machine=machine,
        versions=records.versions(),
        model={"name": "embedded", "shape": asdict(Shape.of(checkpoint("embedded")))},
        starts=commits,
        loads=LOADS,
        rounds=in_turns,
        beside={},
    )
    path = args.json or records.default_path("commits", machine)
    records.write(result, path, {})
    Console().print(table(result))
    print(f"written to {path}")
    return 0


def table(result: Result) -> Table:
    """The medians over rounds of the time between two tokens, and of new to old in each round."""
    shown = Table(
        "load", "old, ms a token", "new, ms a token", "new to old", "front end, CPU µs a token", title="commits"
    )
    for load in result.loads:
        per_token: dict[str, list[float]] = {OLD: [], NEW: []}
        cpu: dict[str, list[float]] = {OLD: [], NEW: []}
        for one in result.rounds:
            record = one.loads[load.name]
            tokens = sum(sample.completion_tokens for sample in record.samples)
            per_token[one.server].append(figures(record.samples, record.seconds).per_token or float("nan"))
            cpu[one.server].append(record.front_end_cpu / tokens * 1e6)
        ratio = statistics.median(new / old for old, new in zip(per_token[OLD], per_token[NEW], strict=True))
        old, new = (f"{statistics.median(per_token[name]) * 1e3:.2f}" for name in (OLD, NEW))
        spent = ", ".join(f"{statistics.median(cpu[name]):.1f}" for name in (OLD, NEW))
        shown.add_row(load.name, old, new, f"{ratio:.3f}", spent)
    return shown


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare_commits", description=__doc__)
    parser.add_argument("old", help="a commit")
    parser.add_argument("new", nargs="?", default="HEAD", help="another")
    parser.add_argument("--starts", type=int, default=2, help="how often the servers are started")
    parser.add_argument("--rounds", type=int, default=5, help="how often each then takes the loads")
    parser.add_argument("--json", type=Path, help="a dated file under benchmarks/results/ if not given")
    return parser.parse_args()


def _start(commits: dict[str, str], rounds: int, first: int, folder: Path) -> list[ServerRecord]:
    """Starts both servers and applies all loads to them in turn, `rounds` times; one record a server and round."""
    prompts = Prompts(checkpoint("embedded"))
    folder.mkdir()
    with ExitStack() as stack:
        servers = {name: stack.enter_context(_serving(name, commit, folder)) for name, commit in commits.items()}
        for load in LOADS:
            for server in servers.values():
                measured(server, load, _requests(load, prompts, "warm-up", warm_up=True))
        done = []
        for number in range(first, first + rounds):
            found: dict[str, dict[str, LoadRecord]] = {name: {} for name in servers}
            for load in LOADS:
                for name in sorted(servers, reverse=number % 2 == 1):
                    found[name][load.name] = measured(servers[name], load, _requests(load, prompts, str(number)))
            print(f"round {number + 1} is done", file=sys.stderr, flush=True)
            done += [ServerRecord(name, number, loads=loads) for name, loads in found.items()]
    return done


@contextmanager
def _serving(name: str, commit: str, folder: Path) -> Iterator[RunningServer]:
    tree, port = folder / name, free_port()
    with tarfile.open(fileobj=io.BytesIO(_git("archive", commit))) as archive:
        archive.extractall(tree, filter="data")
    code = "import sys; from server.cli import main; sys.exit(main())"
    place = ("--port", str(port), "--served-model-name", MODEL_NAME)
    start = Start(
        (sys.executable, "-c", code, "serve", str(checkpoint("embedded")), *place),
        {"PYTHONPATH": str(tree), "PYTHONSAFEPATH": "1"},  # the checkout before what is installed
    )
    with RunningServer(start, port, folder / f"{name}.log") as server:
        server.wait_until_ready(START_LIMIT)
        yield server


def _requests(load: Load, prompts: Prompts, seed: str, *, warm_up: bool = False) -> list[Request]:
    """As other benchmarks have them, with the one field for the mode that both commits know."""
    made = requests(load, prompts, seed, warm_up=warm_up)
    for request in made:
        del request.body["chat_template_kwargs"]
    mode = {True: "reasoning", False: "standard"}
    return [replace(one, body={**one.body, "reasoning_mode": mode[one.thinks]}) for one in made]


def _sha(commit: str) -> str:
    return _git("rev-parse", "--short", f"{commit}^{{commit}}").decode().strip()


def _git(*arguments: str) -> bytes:
    command = ["git", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout


if __name__ == "__main__":
    sys.exit(main())
