"""Runs a benchmark: the same loads on each server in turn, round after round, then what is measured beside them.

If a server fails, the reason is recorded and the others go on. Every step has a time limit.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from benchmarks.load import records
from benchmarks.load.accounting import Sample
from benchmarks.load.beside import BARE_ENGINE, NAMES, TRANSFORMERS, VLLM_BENCH, Beside
from benchmarks.load.checkpoints import checkpoint
from benchmarks.load.drive import Job, Outcome, Request
from benchmarks.load.limits import Shape
from benchmarks.load.machine import Machine, measure_apart, read_bandwidth_apart
from benchmarks.load.records import LoadRecord, Result, ServerRecord
from benchmarks.load.running import RunningServer, ServerFailed, free_port
from benchmarks.load.statistics import figures
from benchmarks.load.tables import overview
from benchmarks.load.workload import SUITES, Load, Prompts, requests
from benchmarks.peers.servers import OTHERS, SERVERS, Start, Target
from server.cli_errors import UsageError

CHAT = "/v1/chat/completions"
_START_LIMIT = 400.0
_FIRST_TOKEN_LIMIT = 60.0
_CLIENT_START = 2.0
"""Seconds until several processes that apply a load have all read what they are to send."""


@dataclass(frozen=True)
class Plan:
    """What to run. `minutes`: a round starts only if, going by the one before, it would end within them."""

    what: str
    servers: Sequence[str]
    rounds: int
    minutes: float

    @property
    def model(self) -> str:
        """The name of the checkpoint."""
        return "large" if self.what == "large" else "embedded"

    @property
    def command(self) -> str:
        """The command line that runs it."""
        return f"twogear bench {self.what} --servers {','.join(self.servers)} --rounds {self.rounds}"


class Suite:
    """One run of a plan. `save` is called with the result so far after every server, so that nothing is lost."""

    def __init__(self, plan: Plan, machine: Machine, folder: Path, save: Callable[[Result], None]) -> None:
        self._plan = plan
        self._machine = machine
        self._save = save
        self._folder = folder
        self._checkpoint = checkpoint(plan.model)
        self._prompts = Prompts(self._checkpoint)
        self._loads = SUITES[plan.what]
        self._starts: dict[str, Start] = {}
        self._records: list[ServerRecord] = []
        self._beside = Beside(self._checkpoint, self._prompts, self._loads)
        self._began = time.monotonic()

    def run(self) -> Result:
        """All rounds, then the result."""
        _read_once(self._checkpoint)
        longest = 0.0
        for number in range(1, self._plan.rounds + 1):
            elapsed = time.monotonic() - self._began
            if number > 1 and elapsed + longest > self._plan.minutes * 60:
                _say(f"{self._plan.minutes:g} minutes would be over before the end of round {number}: left out")
                break
            self._round(number)
            longest = max(longest, time.monotonic() - self._began - elapsed)
        if TRANSFORMERS in self._plan.servers:
            _say("transformers' generate()")
            self._beside.transformers()
        return self._result()

    def _round(self, number: int) -> None:
        for name in (name for name in self._plan.servers if name in _startable()):
            record = self._server(name, number)
            self._records.append(record)
            if record.failed is not None:
                _say(f"round {number}, {name}: failed: {record.failed}")
            self._save(self._result())
        if BARE_ENGINE in self._plan.servers:
            _say(f"round {number}, the bare engine")
            self._beside.bare_engine(number)

    def _server(self, name: str, number: int) -> ServerRecord:
        caches = self._folder / name
        caches.mkdir(exist_ok=True)
        port = free_port()
        try:
            start = _startable()[name](Target(self._plan.model, self._checkpoint, port, caches))
            self._starts.setdefault(name, start)
            with RunningServer(start, port, self._folder / f"{name}-{number}.log") as running:
                return self._measure(running, name, number)
        except (ServerFailed, UsageError, httpx.HTTPError, subprocess.SubprocessError) as error:
            return ServerRecord(name, number, failed=str(error))

    def _measure(self, running: RunningServer, name: str, number: int) -> ServerRecord:
        ready = running.wait_until_ready(_START_LIMIT)
        first_token = self._first_token(running)
        _say(f"round {number}, {name}: ready after {ready:.1f} s, first token after {first_token:.1f} s")
        for load in self._loads:
            if load.warm_up:
                self._drive(running, load, requests(load, self._prompts, str(number), warm_up=True))
        loads = {load.name: self._load(running, load, name, number) for load in self._loads}
        if VLLM_BENCH in self._plan.servers and name == "twogear" and number == 1:
            _say("vllm bench serve, on twogear")
            self._beside.vllm_bench(running.url)
        return ServerRecord(name, number, ready, first_token, loads)

    def _first_token(self, running: RunningServer) -> float:
        """Seconds from the start to the answer to a request for one token."""
        (request, *_) = requests(self._loads[0], self._prompts, "first")
        body = {**request.body, "stream": False, "max_tokens": 1}
        del body["stream_options"]
        httpx.post(f"{running.url}{CHAT}", json=body, timeout=_FIRST_TOKEN_LIMIT).raise_for_status()
        return running.age

    def _load(self, running: RunningServer, load: Load, name: str, number: int) -> LoadRecord:
        wanted = requests(load, self._prompts, str(number))
        bandwidths = self._bandwidth(load)
        before = running.tree.read()
        outcome = self._drive(running, load, wanted)
        after = running.tree.read()
        bandwidths += self._bandwidth(load)
        speed = figures(outcome.samples, outcome.seconds).tokens_per_second
        errors = {sample.error for sample in outcome.samples if sample.error is not None}
        told = f"{speed:,.1f} tokens/s" if speed is not None else "nothing"
        _say(f"round {number}, {name}, {load.name}: {told}{', errors: ' + '; '.join(sorted(errors)) if errors else ''}")
        return LoadRecord.between(before, after, outcome, statistics.mean(bandwidths) if bandwidths else None)

    def _bandwidth(self, load: Load) -> list[float]:
        """The read bandwidth, if the load depends on it: one stream of a model that fits in no cache."""
        return [read_bandwidth_apart()] if load.streams == 1 and self._plan.model == "large" else []

    def _drive(self, running: RunningServer, load: Load, wanted: Sequence[Request]) -> Outcome:
        return drive_apart(Job(f"{running.url}{CHAT}", load.streams, load.limit, wanted))

    def _result(self) -> Result:
        starts = {
            name: {"command": " ".join(start.command), "environment": dict(start.environment)}
            for name, start in self._starts.items()
        }
        weights = sum(path.stat().st_size for path in self._checkpoint.glob("*.safetensors"))
        return Result(
            what=self._plan.what,
            date=records.today(),
            command=self._plan.command,
            commit=records.commit(),
            machine=self._machine,
            versions=records.versions(),
            model={"name": self._plan.model, "weight_bytes": weights, "shape": asdict(Shape.of(self._checkpoint))},
            starts=starts,
            loads=self._loads,
            rounds=self._records,
            beside=self._beside.results,
        )


def drive_apart(job: Job) -> Outcome:
    """Applies a load in a process of its own. Raises subprocess.SubprocessError."""
    command = [sys.executable, "-m", "benchmarks.load.drive"]
    done = subprocess.run(
        command, input=json.dumps(asdict(job)), capture_output=True, text=True, check=True, timeout=job.limit + 60
    )
    fields: dict[str, Any] = json.loads(done.stdout)
    return Outcome(**{**fields, "samples": [Sample(**sample) for sample in fields["samples"]]})


def drive_by(job: Job, clients: int) -> list[Outcome]:
    """Applies a load by so many processes, which share streams and requests. Raises subprocess.SubprocessError."""
    begins = time.perf_counter() + _CLIENT_START if clients > 1 else 0.0
    streams, requests = (_shares(number, clients) for number in (job.streams, len(job.requests)))
    parts = [
        replace(job, streams=len(own), requests=job.requests[asked.start : asked.stop], begins=begins)
        for own, asked in zip(streams, requests, strict=True)
    ]
    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(drive_apart, parts))


def _shares(number: int, clients: int) -> list[range]:
    """So many things for each of so many clients, as evenly as can be."""
    ends = [number * client // clients for client in range(clients + 1)]
    return [range(start, end) for start, end in pairwise(ends)]


def measured(server: RunningServer, load: Load, wanted: Sequence[Request]) -> LoadRecord:
    """The requests of a load on a server that runs. Raises RuntimeError where one of them fails."""
    before = server.tree.read()
    outcome = drive_apart(Job(f"{server.url}{CHAT}", load.streams, load.limit, wanted))
    after = server.tree.read()
    if failed := [sample.error for sample in outcome.samples if sample.error is not None]:
        raise RuntimeError(f"{load.name}: {failed[0]}")
    return LoadRecord.between(before, after, outcome)


def _startable() -> dict[str, Callable[[Target], Start]]:
    """By name, how each server is started: those of a benchmark by default, and those that are asked for."""
    return {**SERVERS, **OTHERS}


def run(args: argparse.Namespace) -> int:
    """Measures the machine, runs the suite, writes the file and prints its table. Raises UsageError."""
    known = (*_startable(), *NAMES)
    default = ("twogear", BARE_ENGINE) if args.what == "quick" else (*SERVERS, *NAMES)
    servers = tuple(args.servers.split(",")) if args.servers else default
    if unknown := [name for name in servers if name not in known]:
        raise UsageError(f"--servers: {unknown[0]!r} is none of {', '.join(known)}")
    if args.rounds < 1:
        raise UsageError("--rounds must be at least 1")
    plan = Plan(args.what, servers, args.rounds, args.minutes)
    _say("measuring the machine")
    machine = measure_apart()
    with tempfile.TemporaryDirectory(prefix="twogear-bench-") as folder:
        path = args.json or records.default_path(plan.what, machine)

        def save(result: Result) -> None:
            records.write(result, path, {folder: "TEMP"})

        result = Suite(plan, machine, Path(folder), save).run()
        save(result)
    Console().print(overview(result))
    print(f"written to {path}")
    return 0


def _read_once(folder: Path) -> None:
    """Reads the model into the page cache, so that the first server does not wait for the disk."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)
