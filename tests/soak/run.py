"""One soak: rounds of load with a fault each, a last one without, and what has to hold at the end.

In every round the keys are read anew twice: without the guest's, and with it again.
"""

import asyncio
import json
import os
import random
import resource
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from server.access.keys import hash_of, new_secret
from tests.real_server import RealServer
from tests.soak.clients import Client, Seen, Token, hold
from tests.soak.kinds import GUESTS, REFUSED, Kind, kinds

ENGINE_TIMEOUT = 20
OPTIONS = (
    *("--engine-timeout", str(ENGINE_TIMEOUT), "--max-connections-per-address", "8192", "--max-stored-responses", "50"),
    *("--", "--max-model-len", "4096", "--kv-cache-memory-bytes", str(16 << 20)),
)
"""Stores so small that they are full, and memory flat, after the first round."""
FAULTS = (signal.SIGKILL, signal.SIGSTOP)
MOST_GROWTH = 0.05
BACK_SECONDS = 240.0
RELOAD_SECONDS = 60.0
WARM_UP = 4  # times
GRACE = 2.0
"""Seconds around a fault in which an error may have been on its way."""


Memory = dict[str, tuple[int, int]]
"""By part of the server: its process, and the bytes that this holds after a round."""


@dataclass(frozen=True)
class Size:
    """How large a soak is; `seconds` for each round's load."""

    rounds: int
    seconds: float
    clients: int
    connections: int


@dataclass
class Report:
    """What was seen; `failures` are empty where all held."""

    failures: list[str]
    seen: Seen
    memory: list[Memory]
    faults: list[tuple[str, float]]
    connections: int

    def text(self) -> str:
        """As JSON, on one line for each part."""
        parts = {**vars(self), **vars(self.seen)}
        del parts["seen"]
        return "\n".join(f"{name}: {json.dumps(value)}" for name, value in parts.items())


class Keys:
    """The server's file of keys: that of the load, and a guest's."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "keys.toml"
        self.load, self.guest = new_secret(), new_secret()
        self.write(guest=True)

    def write(self, *, guest: bool) -> None:
        """With or without the guest's; in one go, as the server may read it at any time."""
        secrets = {"load": self.load, **({"guest": self.guest} if guest else {})}
        lines = [
            f'[[keys]]\nname = "{name}"\nhash = "{hash_of(one.encode())}"\nroutes = ["models", "control", "metrics"]\n'
            for name, one in secrets.items()
        ]
        new = self.file.with_suffix(".new")
        new.write_text("\n".join(lines))
        new.replace(self.file)


def _bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


class Soak:
    """Over a running server that has `keys`."""

    def __init__(self, server: RealServer, size: Size, seed: int, keys: Keys) -> None:
        self._server = server
        self._keys = keys
        self._unheeded: list[str] = []  # reloads that changed nothing
        self._size = size
        self._rng = random.Random(seed)
        self._seen = Seen()
        self._memory: list[Memory] = []
        self._faults: list[tuple[str, float]] = []  # how, and seconds until the engine was back
        self._explained: list[tuple[float, float]] = []

    async def run(self) -> Report:
        """All rounds."""
        limits = httpx.Limits(max_connections=None)
        let_go = asyncio.Event()
        headers = _bearer(self._keys.load)
        async with httpx.AsyncClient(base_url=self._server.url, timeout=300, limits=limits, headers=headers) as http:
            paths = (await http.get("/openapi.json")).json()["paths"]
            asked = kinds(paths)
            solo = await self._alone(http, asked)
            number = min(self._size.connections, _most_connections())
            url = httpx.URL(self._server.url)
            held = [asyncio.create_task(hold(url.host, url.port or 80, n, let_go)) for n in range(number)]
            await self._warm_up(Client(http, solo, self._seen), asked)
            for turn in range(self._size.rounds):
                fault = FAULTS[turn % len(FAULTS)] if turn + 1 < self._size.rounds else None
                reloads = asyncio.create_task(self._reload_keys(http))
                await self._round(Client(http, solo, self._seen), asked, fault)
                await reloads
            let_go.set()
            lost = [end for end in await asyncio.gather(*held, return_exceptions=True) if isinstance(end, Exception)]
            failures = [f"{len(lost)} connections were not held, one of them: {one!r}" for one in lost[:1]]
            failures += [*self._check_answers(), *self._check_memory(), *await self._check_rest(http)]
        return Report(failures, self._seen, self._memory, self._faults, number)

    async def _alone(self, http: httpx.AsyncClient, asked: list[Kind]) -> dict[str, list[Token]]:
        client = Client(http, {}, self._seen)
        return {kind.name: await client.tokens(kind) for kind in asked if kind.greedy}

    async def _warm_up(self, client: Client, asked: list[Kind]) -> None:
        """Each kind so often that what a round makes of the server's memory does not depend on the machine's speed."""
        for _ in range(WARM_UP):
            await asyncio.gather(*(client.ask(kind) for kind in asked))

    async def _round(self, client: Client, asked: list[Kind], fault: signal.Signals | None) -> None:
        until = time.monotonic() + self._size.seconds
        rngs = [random.Random(self._rng.random()) for _ in range(self._size.clients)]
        load = asyncio.gather(*(client.go_on(asked, rng, until) for rng in rngs))
        if fault is not None:
            await asyncio.sleep(self._size.seconds / 4)
            await self._inject(fault)
        await load
        if fault is not None:  # what was asked while there was no engine says nothing of the new one
            until = time.monotonic() + self._size.seconds / 2
            await asyncio.gather(*(client.go_on(asked, rng, until) for rng in rngs))
        pids = {"front end": self._server.process.pid, "engine": self._server.engine_pid}
        self._memory.append({part: (pid, _resident(pid)) for part, pid in pids.items()})

    async def _reload_keys(self, http: httpx.AsyncClient) -> None:
        """The guest is let in, is not, and is again, on every route."""
        for guest in (False, True):
            await asyncio.sleep(self._size.seconds / 3)
            self._keys.write(guest=guest)
            self._server.process.send_signal(signal.SIGHUP)
            for path, body in GUESTS.items():
                if not await self._is_let_in(http, path, body, guest):
                    self._unheeded.append(f"{path}: the guest's key is {'not ' * guest}taken")

    async def _is_let_in(self, http: httpx.AsyncClient, path: str, body: dict[str, Any], wanted: bool) -> bool:
        """Whether the guest soon is, or is not, as `wanted`. The files are read in a thread: the load goes on."""
        until = time.monotonic() + RELOAD_SECONDS
        while time.monotonic() < until:
            response = await http.post(path, json=body, headers=_bearer(self._keys.guest))
            if (response.status_code != 401) == wanted:
                return True
            await asyncio.sleep(0.1)
        return False

    async def _inject(self, fault: signal.Signals) -> None:
        pid = self._server.engine_pid
        began = time.monotonic()
        os.kill(pid, fault)
        await _until(lambda: self._server.engine_pid not in {pid, 0} and self._is_ready(), BACK_SECONDS)
        ended = time.monotonic()
        self._explained.append((began - GRACE, ended + GRACE))
        self._faults.append((fault.name, round(ended - began, 1)))

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self._server.url}/health", timeout=30).status_code == 200
        except httpx.TimeoutException:
            return False

    def _check_answers(self) -> list[str]:
        seen = self._seen
        unexplained = [
            f"{status} for {name!r} that no fault explains"
            for when, status, name in seen.server_errors
            if not any(begin <= when <= end for begin, end in self._explained)
        ]
        wrong = [f"{status} for {name!r}" for _, status, name in seen.server_errors if status not in {200, 503}]
        refused = {how for how in seen.outcomes if how.endswith(": refused")} - {f"{REFUSED}: refused"}
        answered = sum(number for how, number in seen.outcomes.items() if how.endswith(": answer"))
        return [
            *(f"a request that nothing is wrong with: {one}" for one in sorted(refused)),
            *unexplained,
            *wrong,
            *(f"neither answer nor error: {one}" for one in seen.broken),
            *(f"another answer than alone: {one}" for one in seen.different),
            *(f"keys that were read anew: {one}" for one in self._unheeded),
            *([] if answered else ["nothing was answered"]),
        ]

    def _check_memory(self) -> list[str]:
        """A process is warm after its first round, the front end after one with each fault and a third of the rounds:
        what a loss needs stays, and so does the heap of the largest burst so far.
        """
        grown = []
        warm = {"front end": self._memory[max(len(FAULTS) - 1, len(self._memory) // 3) :], "engine": self._memory}
        for part, rounds in warm.items():
            processes: dict[int, int] = {}
            for one in rounds:
                pid, size = one[part]
                if size > processes.setdefault(pid, size) * (1 + MOST_GROWTH):
                    grown.append(f"memory of the {part} {pid} grew from {processes[pid]} to {size} bytes")
        return grown

    async def _check_rest(self, http: httpx.AsyncClient) -> list[str]:
        """Nothing is left of what has ended."""
        left: list[str] = []

        async def look() -> bool:
            lines = (await http.get("/metrics")).text.splitlines()
            left[:] = [line for line in lines if line.startswith(_EMPTY) and float(line.rpartition(" ")[2]) != 0]
            left[:] = [line for line in left if "twogear_kv_pages" not in line or 'state="used"' in line]
            return not left

        for _ in range(100):
            if await look():
                break
            await asyncio.sleep(0.3)
        tracebacks = [line for line in self._server.output if line.startswith("Traceback")]
        return [*(f"left over: {line}" for line in left), *(f"in the log: {line}" for line in tracebacks)]


_EMPTY = (
    *("twogear_requests_running{", "twogear_requests_waiting{", "twogear_engine_places{", "twogear_kv_pages{"),
    *("vllm:num_requests_running{", "vllm:num_requests_waiting{"),
)


def _resident(pid: int) -> int:
    """Bytes that a process holds in memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def _most_connections() -> int:
    """As many as this process and a server that it has started may have files, less what else they need."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard - 200


async def _until(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not await asyncio.to_thread(condition):
        if time.monotonic() > end:
            raise TimeoutError(f"the engine was not back after {seconds:g} s")
        await asyncio.sleep(0.2)


def soak(size: Size, seed: int = 0, options: tuple[Any, ...] = OPTIONS) -> Report:
    """Starts a server and runs the soak over it."""
    with tempfile.TemporaryDirectory() as folder:
        keys = Keys(Path(folder))
        return _soak(keys, size, seed, ("--api-keys", str(keys.file), *options))


def _soak(keys: Keys, size: Size, seed: int, options: tuple[Any, ...]) -> Report:
    with RealServer(*options) as server:
        report = asyncio.run(Soak(server, size, seed, keys).run())
        if (code := server.stop()) != 0:
            report.failures.append(f"the server ended with status {code}")
    return report
