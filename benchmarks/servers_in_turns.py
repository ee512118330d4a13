"""Servers that are all up at once and take loads in turn: `python -m benchmarks.servers_in_turns --servers A,B`.

`twogear bench` starts one server after another, so that each has the machine's memory to itself, and what else the
machine does in these minutes falls on one of them alone. Here it falls on all: a server that waits costs nothing. There
has to be memory for all of them. Writes the raw samples as `twogear bench` does.

With `--streams 32` the load is so many streams at once, half of them thinking, in place of the three loads.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.load import records
from benchmarks.load.checkpoints import checkpoint
from benchmarks.load.limits import Shape
from benchmarks.load.machine import measure_apart
from benchmarks.load.records import LoadRecord, Result, ServerRecord
from benchmarks.load.running import RunningServer, free_port
from benchmarks.load.statistics import figures
from benchmarks.load.suite import measured
from benchmarks.load.workload import Load, Prompts, requests
from benchmarks.peers.servers import OTHERS, SERVERS, Target

START_LIMIT = 600.0
MODELS = ("embedded", "large")
LOADS = (
    Load(streams=1, mode="standard", prompt_tokens=100, output_tokens=48, requests=1, limit=240, warm_up=0),
    Load(streams=8, mode="half", prompt_tokens=100, output_tokens=32, requests=8, limit=240, warm_up=0),
    Load(streams=1, mode="standard", prompt_tokens=2000, output_tokens=2, requests=1, limit=240, warm_up=0),
)


def _streams(count: int) -> Load:
    return Load(streams=count, mode="half", prompt_tokens=40, output_tokens=32, requests=count, limit=600, warm_up=0)


def main() -> int:
    """Measures, writes the file, prints its table."""
    args = _arguments()
    names = tuple(args.servers.split(","))
    loads = LOADS if args.streams is None else (_streams(args.streams),)
    machine = measure_apart()
    with tempfile.TemporaryDirectory(prefix="twogear-turns-") as folder:
        in_turns = list(_rounds(args.model, names, loads, args.rounds, Path(folder)))
    result = Result(
        what="turns",
        date=records.today(),
        command=f"python -m benchmarks.servers_in_turns --model {args.model} --servers {args.servers} "
        f"--rounds {args.rounds}" + (f" --streams {args.streams}" if args.streams else ""),
        commit=records.commit(),
        machine=machine,
        versions=records.versions(),
        model={"name": args.model, "shape": asdict(Shape.of(checkpoint(args.model)))},
        starts={},
        loads=loads,
        rounds=in_turns,
        beside={},
    )
    path = args.json or records.default_path("turns", machine)
    records.write(result, path, {})
    Console(width=120).print(table(result))
    print(f"written to {path}")
    return 0


def table(result: Result) -> Table:
    """Medians over rounds, and after them the medians of each round's ratio to the first server's."""
    servers = list(dict.fromkeys(one.server for one in result.rounds))
    shown = Table("server", *(f"{load.name}: {_what(load)}, to {servers[0]}'s" for load in result.loads))
    seconds = {
        (one.server, load.name): [
            _seconds(load, each.loads[load.name]) for each in result.rounds if each.server == one.server
        ]
        for one in result.rounds
        for load in result.loads
    }
    for server in servers:
        cells = []
        for load in result.loads:
            own, first = seconds[server, load.name], seconds[servers[0], load.name]
            ratio = statistics.median(ours / theirs for ours, theirs in zip(own, first, strict=True))
            cells.append(f"{statistics.median(own) * 1e3:.0f}, {ratio:.2f}")
        shown.add_row(server, *cells)
    return shown


def _what(load: Load) -> str:
    return "ms to the first token" if load.prompt_tokens > 1000 else "ms a token"


def _seconds(load: Load, record: LoadRecord) -> float:
    """To the first token, or between two of a stream."""
    found = figures(record.samples, record.seconds)
    return (found.first if load.prompt_tokens > 1000 else found.per_token) or float("nan")


def _arguments() -> argparse.Namespace:
    known = [*SERVERS, *OTHERS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.servers_in_turns", description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="large")
    parser.add_argument("--servers", required=True, metavar="A,B", help=f"of {', '.join(known)}")
    parser.add_argument("--rounds", type=int, default=5, help="how often each takes the loads")
    parser.add_argument("--streams", type=int, help="requests at once, in place of the three loads")
    parser.add_argument("--json", type=Path, help="a dated file under benchmarks/results/ if not given")
    args = parser.parse_args()
    if unknown := set(args.servers.split(",")) - set(known):
        parser.error(f"--servers: {', '.join(sorted(unknown))} is none of {', '.join(known)}")
    return args


def _rounds(
    model: str, names: Sequence[str], loads: Sequence[Load], rounds: int, folder: Path
) -> Iterator[ServerRecord]:
    """One record a server and round; the order turns round from one round to the next. Ends early where one fails."""
    prompts, most = Prompts(checkpoint(model)), max(load.streams for load in loads)
    with ExitStack() as stack:
        servers = {name: stack.enter_context(_serving(name, model, folder, most)) for name in names}
        for load in loads:
            for server in servers.values():
                measured(server, load, requests(load, prompts, "warm-up"))
        for number in range(rounds):
            found: dict[str, dict[str, LoadRecord]] = {name: {} for name in names}
            for load in loads:
                for name in names[:: -1 if number % 2 else 1]:
                    try:
                        found[name][load.name] = measured(servers[name], load, requests(load, prompts, str(number)))
                    except RuntimeError as error:
                        print(f"round {number + 1} does not count: {name}, {error}", file=sys.stderr)
                        return
            print(f"round {number + 1} is done", file=sys.stderr, flush=True)
            yield from (ServerRecord(name, number, loads=loads) for name, loads in found.items())


@contextmanager
def _serving(name: str, model: str, folder: Path, most: int) -> Iterator[RunningServer]:
    port = free_port()
    start = {**SERVERS, **OTHERS}[name](Target(model, checkpoint(model), port, folder / name, most))
    with RunningServer(start, port, folder / f"{name}.log") as server:
        server.wait_until_ready(START_LIMIT)
        print(f"{name} is ready", file=sys.stderr, flush=True)
        yield server


if __name__ == "__main__":
    sys.exit(main())
