"""The CPU time and memory of a server's processes, read from /proc, the front end apart from the rest.

The front end is the process that was started. All that it starts in turn counts as the engine.
"""

import os
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Reading:
    """CPU seconds since the processes began; memory in bytes, where pages that processes share count once."""

    front_end_cpu: float
    engine_cpu: float
    memory: int


class ProcessTree:
    """The process `root` and its descendants. CPU time of a process still counts after its end."""

    def __init__(self, root: int) -> None:
        self.root = root
        self._cpu: dict[int, float] = {}

    def read(self) -> Reading:
        """The sums so far."""
        memory = 0
        for pid in self.pids():
            try:
                self._cpu[pid] = cpu_seconds(pid)
                memory += _memory(pid)
            except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
                continue
        front_end = self._cpu.get(self.root, 0.0)
        return Reading(front_end, sum(self._cpu.values()) - front_end, memory)

    def pids(self) -> list[int]:
        """The running processes, parents before children."""
        found, unseen = [], [self.root]
        while unseen:
            pid = unseen.pop()
            try:
                unseen += _children(pid)
            except (FileNotFoundError, ProcessLookupError):
                continue
            found.append(pid)
        return found


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task")
    return [int(child) for task in tasks.iterdir() for child in (task / "children").read_text().split()]


def cpu_seconds(pid: int) -> float:
    """User and system time: fields 14 and 15 of proc(5)'s stat, whose second field, in brackets, may hold anything."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / _TICKS


def _memory(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    kibibytes = next((line.split()[1] for line in lines if line.startswith("Pss:")), "0")
    return int(kibibytes) * 1024
