"""What becomes of many requests at once, and of the server's memory: `python -m benchmarks.many_at_once`.

Against a running server, several times over: all requests at the same moment, each over a connection of its own, every
other one a thinker. Each has to end in an answer, or in a 429 or 503, within the time that the server lets it wait and
answers take. The memory of the front end (`--pid`) shall be the same after every time.
"""

import argparse
import asyncio
import json
import platform
import re
import statistics
import time
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
import uvloop

from benchmarks.load.accounting import Sample
from benchmarks.load.open_files import OTHER_FILES, raise_open_files
from benchmarks.load.statistics import percentile
from benchmarks.load.workload import Prompts
from benchmarks.result_text import result_text
from benchmarks.short_beside_thinkers import SHORT_TOKENS, SHORT_WORDS, Load
from server.access.keys import client_headers
from server.settings import EMBEDDED_MODEL

ANSWERED = "answered"
LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class Figures:
    """Of one time. `ends`: how the requests ended, by number. Seconds; memory in MiB, None without a process id."""

    requests: int
    ends: dict[str, int]
    late: int
    median: float
    p95: float
    longest: float
    memory_before: float | None
    memory_most: float | None
    memory_after: float | None


def end_of(sample: Sample) -> str:
    """How a request ended: `answered`, the status, or what went wrong with the connection."""
    if sample.error is None:
        return ANSWERED
    status = re.match(r"status (\d+)", sample.error)
    return status[1] if status else sample.error


async def measure(load: Load, requests: int, deadline: float, pid: int | None) -> Figures:
    """One time."""
    before = _memory(pid)
    most = [before]
    watch = asyncio.create_task(_watch(pid, most))
    asked = (load.ask(SHORT_WORDS, SHORT_TOKENS, thinks=bool(number % 2)) for number in range(requests))
    started = time.perf_counter()
    samples = await asyncio.gather(*asked)
    times = sorted(sample.ended - started for sample in samples)
    await asyncio.sleep(1)
    watch.cancel()
    return Figures(
        requests=requests,
        ends=dict(Counter(map(end_of, samples))),
        late=sum(one > deadline for one in times),
        median=statistics.median(times),
        p95=percentile(times, 0.95),
        longest=times[-1],
        memory_before=before,
        memory_most=max((one for one in most if one is not None), default=None),
        memory_after=_memory(pid),
    )


async def _watch(pid: int | None, seen: list[float | None]) -> None:
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        seen.append(_memory(pid))


def _memory(pid: int | None) -> float | None:
    """What a process holds of the machine's memory, in MiB."""
    if pid is None:
        return None
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    resident = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert resident is not None
    return int(resident[1]) / 1024


def main() -> None:
    """Measures, prints a line for each time and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server's")
    parser.add_argument("--pid", type=int, help="its front end's process, on this machine")
    parser.add_argument("--requests", type=int, default=10_000, help="how many at once")
    parser.add_argument("--rounds", type=int, default=3, help="how many times")
    parser.add_argument("--deadline", type=float, default=360, help="seconds in which each has to end")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the result goes")
    args = parser.parse_args()
    raise_open_files(args.requests + OTHER_FILES)
    model = (
        httpx.get(f"{args.url}/v1/models", headers=client_headers(), timeout=10)
        .raise_for_status()
        .json()["data"][0]["id"]
    )
    load, rounds = Load(args.url, model, Prompts(EMBEDDED_MODEL)), []
    for _ in range(args.rounds):
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            figures = runner.run(measure(load, args.requests, args.deadline, args.pid))
        rounds.append(asdict(figures))
        print(json.dumps(rounds[-1]))
    if args.json is not None:
        head = {
            "what": "many_at_once",
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "cpu": platform.processor() or platform.machine(),
            "command": f"python -m benchmarks.many_at_once --requests {args.requests} --rounds {args.rounds}",
        }
        args.json.write_text(result_text({**head, "rounds": rounds}))


if __name__ == "__main__":
    main()
