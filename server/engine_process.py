"""One life of the engine process on this machine: its start, its log, the stacks of its threads, its end.

Knows processes and signals. What goes over the socket is `server.engine_connection`'s part.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from engine import DUMP_SIGNAL

logger = logging.getLogger("twogear.engine")
"""Carries every line that the engine process writes."""

GENTLE_SECONDS = 5.0
"""For a process that was asked to leave, or whose connection broke, before it is killed."""
_DUMP_SECONDS = 3.0
"""For the stacks to be written; as faulthandler writes them in one go, silence ends them earlier."""
_TAIL = 40
_LONGEST_LINE = 500
"""Lines and characters of its log that are kept to tell why it ended."""
_LONGEST_DUMP = 5000


class EngineProcess:
    """A running engine; `socket` is this end of its connection."""

    def __init__(self, process: asyncio.subprocess.Process, ours: socket.socket) -> None:
        self.socket = ours
        self.last_lines: deque[str] = deque(maxlen=_TAIL)
        self.lines = 0
        """How many lines it has written."""
        self._process = process
        self._dump: list[str] | None = None
        self._log = asyncio.create_task(self._read_log())
        self.exited = asyncio.create_task(process.wait())
        """Its exit status; negative: the signal that ended it."""

    @classmethod
    async def start(cls, arguments: Sequence[str], environment: Mapping[str, str]) -> "EngineProcess":
        """Starts `python -m engine` with `arguments` behind its socket."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "engine", "--socket-fd", str(theirs.fileno()), *arguments),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C is the front end's; and workers can be ended as a group
            )
        return cls(process, ours)

    @property
    def pid(self) -> int:
        """The engine's; its workers are in the process group of that number."""
        return self._process.pid

    def processor_time(self) -> int:
        """What the group has computed so far, in the kernel's ticks."""
        return sum(int(ticks) for fields in self._group().values() for ticks in fields[11:15])

    async def dump(self) -> list[str]:
        """The stacks of all threads, as the group's processes write them; empty where they cannot.

        faulthandler's handler is C and needs no GIL, so that a thread that holds it in native code does not matter.
        A stopped process has to go on to write.
        """
        self._dump = []
        for pid in self._group():
            if _catches(pid, DUMP_SIGNAL):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, DUMP_SIGNAL)
                    os.kill(pid, signal.SIGCONT)
        until, seen = time.monotonic() + _DUMP_SECONDS, 0
        while time.monotonic() < until:
            await asyncio.sleep(0.3)
            if self._dump and len(self._dump) == seen:
                break
            seen = len(self._dump)
        dump, self._dump = self._dump, None
        return dump

    async def end(self, seconds: float = 0.0) -> int:
        """Waits so long for it to leave, then kills it and its workers; its exit status."""
        try:
            await asyncio.wait([self.exited], timeout=seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        await asyncio.wait([self._log], timeout=GENTLE_SECONDS)
        self._log.cancel()
        return await self.exited

    def _group(self) -> dict[int, list[str]]:
        """By process id, the fields of /proc/PID/stat behind the name, of all processes of the group."""
        return {pid: fields for pid, fields in _processes() if int(fields[2]) == self.pid}

    async def _read_log(self) -> None:
        """Passes the engine's lines on, and keeps the last ones."""
        assert self._process.stdout is not None
        rest = b""
        while chunk := await self._process.stdout.read(1 << 16):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if text := line.decode(errors="replace").rstrip():
                    self._take_line(text)

    def _take_line(self, text: str) -> None:
        self.lines += 1
        if self._dump is None:
            self.last_lines.append(text[:_LONGEST_LINE])
            logger.info("%s", text)
        elif len(self._dump) < _LONGEST_DUMP:
            self._dump.append(text)


def _processes() -> Iterator[tuple[int, list[str]]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                yield int(entry.name), entry.joinpath("stat").read_text(errors="replace").rpartition(")")[2].split()


def _catches(pid: int, number: int) -> bool:
    """Whether the process has a handler for the signal; one that has none would be ended by it."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def exit_words(exit_status: int) -> str:
    """An exit status in words, to go behind "the engine" or "it"."""
    if exit_status >= 0:
        return f"ended with status {exit_status}"
    try:
        name = signal.Signals(-exit_status).name
    except ValueError:  # a real-time signal
        name = "a signal"
    perhaps = ", perhaps out of memory" if exit_status == -signal.SIGKILL else ""
    return f"was killed by {name} ({-exit_status}){perhaps}"
