"""A `twogear serve` as the child of a replica: started, watched, ended. It dies with its parent."""

import asyncio
import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence

PR_SET_PDEATHSIG = 1
END_SECONDS = 15.0
"""Beyond the time to drain, until a child that does not end is killed."""
LAST_LINES = 20
_READY = re.compile(r"Ready after .* at (http://\S+) ")
_libc = ctypes.CDLL(None)


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
        self._ended = threading.Event()
        self.pid = 0

    async def start(self) -> str:
        """Its URL, once it takes requests. Raises ChildError."""
        self._loop = asyncio.get_running_loop()
        self._url = self._loop.create_future()
        process = subprocess.Popen(  # noqa: ASYNC220 - in this thread: the child dies with it
            self._command,
            env=dict(self._environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - one call into the C library, which takes no lock
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
        process.wait()
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
            self._url.set_exception(ChildError(said or " / ".join(self._last) or "it ended without a word"))
        else:
            self._url.set_result(url)


def _die_with_parent() -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
