"""A whole server as a user starts it: `twogear serve` as a process, with its engine behind it."""

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

TWOGEAR = Path(sys.executable).parent / "twogear"
START_SECONDS = 280  # on a busy machine; alone it takes a tenth


class RealServer:
    """Runs from `with` to its end; `url` is known, and `output` complete, once requests are taken.

    `command`: another than `twogear`. `patience`: how many seconds it may take to start.
    """

    def __init__(
        self, *arguments: str, command: Sequence[str | Path] = (TWOGEAR,), patience: float = START_SECONDS
    ) -> None:
        self.url = ""
        self.output: list[str] = []
        self._patience = patience
        self._announced = threading.Event()
        self.process = subprocess.Popen(
            [*command, "serve", "--port", "0", *arguments], stderr=subprocess.PIPE, text=True, bufsize=1
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Self:
        if not self._announced.wait(self._patience) or not self.url:
            self.stop()
            raise RuntimeError("the server did not start:\n" + "\n".join(self.output))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def engine_pid(self) -> int:
        """The engine process, which is a child of the server; 0 while there is none."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return next((int(pid) for pid in children if _command(pid)[1:3] == ["-m", "engine"]), 0)

    def wait_until(self, status: int) -> httpx.Response:
        """The first answer of /health with this status."""
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            response = httpx.get(f"{self.url}/health")
            if response.status_code == status:
                return response
            time.sleep(0.05)
        raise TimeoutError(f"/health was never {status}; last: {response.text}")

    def stop(self, how: signal.Signals = signal.SIGINT) -> int:
        """Ends the server as Ctrl-C would; its exit code."""
        self.process.send_signal(how)
        code = self.process.wait(60)
        self._reader.join()
        return code

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                self.output.append(line.rstrip("\n"))
                if found := re.match(r"Ready after .* at (http://\S+) ", line):
                    self.url = found[1]
                    self._announced.set()
        self._announced.set()


def _command(pid: str) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:  # it has ended meanwhile
        return []
