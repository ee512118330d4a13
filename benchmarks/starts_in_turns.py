"""How long servers take until they are ready, and what memory they take: `python -m benchmarks.starts_in_turns`.

Each server is started once with empty caches, then in rounds with those that it left, one server after another. Memory
is that of all its processes when it is ready and nothing was asked, with pages that processes share counted once.
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.load.checkpoints import checkpoint
from benchmarks.load.records import commit, today
from benchmarks.load.running import RunningServer, free_port
from benchmarks.load.tables import Cells
from benchmarks.peers.servers import OTHERS, SERVERS, Target
from benchmarks.result_text import result_text
from server.cli_errors import UsageError

START_LIMIT = 600.0


@dataclass(frozen=True)
class Start:
    """`round` 0 has empty caches. Seconds until it is ready, and of processors until then; memory in MiB."""

    server: str
    round: int
    ready: float
    cpu: float
    memory: float


def main() -> None:
    """Starts them, prints the table and writes the result. Raises UsageError."""
    known = {**SERVERS, **OTHERS}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("embedded", "large"), default="large")
    parser.add_argument("--servers", default="twogear,twogear-int8,twogear-int4", help=f"of {', '.join(known)}")
    parser.add_argument("--rounds", type=int, default=3, help="later starts of each")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the result goes")
    args = parser.parse_args()
    names = args.servers.split(",")
    if unknown := set(names) - set(known):
        raise UsageError(f"--servers: {', '.join(sorted(unknown))} is none of {', '.join(known)}")
    if args.rounds < 1:
        raise UsageError("--rounds must be at least 1")
    with tempfile.TemporaryDirectory(prefix="twogear-starts-") as folder:
        starts = [
            _started(name, number, args.model, Path(folder))
            for number in range(args.rounds + 1)
            for name in names[:: -1 if number % 2 else 1]
        ]
    print(table(starts, names), end="")
    if args.json is not None:
        asked = f"--model {args.model} --servers {args.servers} --rounds {args.rounds} --json FILE"
        result = {
            "what": "starts_in_turns",
            "date": today(),
            "command": f"python -m benchmarks.starts_in_turns {asked}",
            "commit": commit(),
            "starts": [asdict(start) for start in starts],
        }
        args.json.write_text(result_text(result))


def table(starts: Sequence[Start], names: Sequence[str]) -> str:
    """In Markdown: first starts, medians of later ones, and the medians of each round's ratios to the first server."""
    later = {name: [one for one in starts if one.server == name and one.round] for name in names}
    first = {one.server: one for one in starts if not one.round}
    rows = [
        [name, f"{first[name].ready:.1f}"]
        + [_median(later[name], later[names[0]], value) for value in ("ready", "cpu", "memory")]
        for name in names
    ]
    heads = ["server", "first start, s", "later starts, s", "of processors, s", "memory, MiB"]
    return Cells(heads, rows).markdown()


def _median(own: Sequence[Start], others: Sequence[Start], value: str) -> str:
    pairs = [(getattr(ours, value), getattr(theirs, value)) for ours, theirs in zip(own, others, strict=True)]
    ratio = statistics.median(ours / theirs for ours, theirs in pairs)
    return f"{statistics.median(ours for ours, _ in pairs):,.1f} ({ratio:.2f})"


def _started(name: str, number: int, model: str, folder: Path) -> Start:
    port = free_port()
    start = {**SERVERS, **OTHERS}[name](Target(model, checkpoint(model), port, folder / name))
    with RunningServer(start, port, folder / f"{name}.log") as server:
        ready = server.wait_until_ready(START_LIMIT)
        reading = server.tree.read()
    return Start(name, number, ready, reading.front_end_cpu + reading.engine_cpu, reading.memory / 2**20)


if __name__ == "__main__":
    main()
