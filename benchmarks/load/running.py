"""A server from its start to its end: seconds until it is ready and gives a first token, and what it uses.

It never leaves a process behind: SIGTERM ends the measurement as Ctrl-C does. Only SIGKILL cannot be handled.
"""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn, Self

import httpx

from benchmarks.load.processes import ProcessTree
from benchmarks.peers.servers import Start

_POLL_SECONDS = 0.1
_LEAVE_SECONDS = 20.0
_LONGEST_WORDS = 300
_ERROR = re.compile(r"\b\w*(?:Error|Exception)\b: ")


class ServerFailed(Exception):  # noqa: N818 - reads as what it says
    """The server did not start, or died; the message says why, in one line."""


def free_port() -> int:
    """A port on which nobody listens now; none that the system gives away by itself, as to each client's connection."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(1024, first) if first > 2048 else 0
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])


class RunningServer:
    """Use it in a `with`, in the main thread, since only that gets signals. Ready once `wait_until_ready` returns."""

    def __init__(self, start: Start, port: int, log: Path) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        self._start = start
        self._began = 0.0

    def __enter__(self) -> Self:
        self._began = time.perf_counter()
        self._before = signal.signal(signal.SIGTERM, _leave)
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._start.command,
                env={**os.environ, **self._start.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.tree = ProcessTree(self._process.pid)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is ending already
        pids = self.tree.pids()
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(_LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pid in pids[1:]:
            _kill(pid)
        signal.signal(signal.SIGTERM, self._before)

    @property
    def age(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._began

    def wait_until_ready(self, limit: float) -> float:
        """Seconds from the start until /health is 200. Raises ServerFailed."""
        with httpx.Client() as client:
            while self.age < limit:
                if self._process.poll() is not None:
                    raise ServerFailed(f"it ended with status {self._process.returncode}: {self.last_words()}")
                try:
                    if client.get(f"{self.url}/health", timeout=5).status_code == 200:
                        return self.age
                except httpx.TransportError:
                    pass
                time.sleep(_POLL_SECONDS)
        raise ServerFailed(f"it was not ready after {limit:g} s: {self.last_words()}")

    def last_words(self) -> str:
        """The first error in its log, which usually causes the others, and its last line."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line[found.start() :] for line in lines if "WARNING" not in line and (found := _ERROR.search(line))]
        return " … ".join(dict.fromkeys(line[:_LONGEST_WORDS] for line in [*errors[:1], *lines[-1:]]))


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    """Unwinds the stack, which a signal does not do by itself. The exit status is the one of shells for that signal."""
    sys.exit(128 + number)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
