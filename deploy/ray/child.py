"""A `twogear serve` as the child of a replica: started, watched, ended. It dies with its parent."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence

DIE_WITH_PARENT = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL; it outlives exec
try:
    os.getppid() == int(sys.argv[1]) and os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit(f"twogear: error: cannot run {sys.argv[2]}: {error.strerror}")
"""
"""Run by an interpreter of its own. A function between fork and exec would have Python fork with all handlers of the
libraries here: gRPC's starts threads in the child, which then abort."""
END_SECONDS = 15.0
"""Beyond the time to drain, until a child that does not end is killed."""
LAST_LINES = 20
_READY = re.compile(r"Ready after .* at (http://\S+) ")


class ChildError(Exception):
    """The child did not get ready; its last line says why."""


class Child:
    """`lost` is called, in a thread of its own, when the child ends without having been told to.

    Start it in a thread that lives as long as it is to: the system ends it with that.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], lost: Callable[[], None]) -> None:
        self._command = command
        self._environment = environment
        self._lost = lost
        self._last: deque[str] = deque(maxlen=LAST_LINES)
        self._url: asyncio.Future[str] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_ending = False
        self._code: int | None = None
        self._ended = threading.Event()
        self.pid = 0

    async def start(self) -> str:
        """Its URL, once it takes requests. Raises ChildError."""
        self._loop = asyncio.get_running_loop()
        self._url = self._loop.create_future()
        process = subprocess.Popen(  # noqa: ASYNC220 - in this thread: the child dies with it
            [sys.executable, "-ISc", DIE_WITH_PARENT, str(os.getpid()), *self._command],
            env=dict(self._environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        self.pid = process.pid
        threading.Thread(target=self._watch, args=(process,), daemon=True).start()
        return await self._url

    async def end(self, seconds: float) -> None:
        """Lets it drain for `seconds` at most."""
        self._is_ending = True
        if self.pid == 0 or self._ended.is_set():
            return
        os.kill(self.pid, signal.SIGTERM)
        if not await asyncio.to_thread(self._ended.wait, seconds + END_SECONDS):
            os.kill(self.pid, signal.SIGKILL)

    def _watch(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        with process.stderr as lines:
            for line in lines:
                sys.stderr.write(line)
                self._last.append(line.strip())
                if found := _READY.match(line):
                    self._settle(found[1])
        self._code = process.wait()
        self._ended.set()
        if not self._settle(None) and not self._is_ending:
            self._lost()

    def _settle(self, url: str | None) -> bool:
        """Whether `start` still waited."""
        assert self._loop is not None
        assert self._url is not None
        if self._url.done():
            return False
        self._loop.call_soon_threadsafe(self._tell, url)
        return True

    def _tell(self, url: str | None) -> None:
        assert self._url is not None
        if self._url.done():
            return
        if url is None:
            said = next((line for line in reversed(self._last) if line.startswith("twogear: error:")), "")
            ended = f"{self._command[0]} ended with {self._code}"
            self._url.set_exception(ChildError(said or ": ".join([ended, *filter(None, [" / ".join(self._last)])])))
        else:
            self._url.set_result(url)
