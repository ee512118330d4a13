"""CPU time and memory of real processes that use a known amount of both."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from benchmarks.load.processes import ProcessTree

# Each burns CPU seconds of its own, says so, and ends with its standard input.
BURN = """
import sys, time
def burn(seconds):
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass
"""
CHILD = f"""{BURN}
held = b"x" * (64 << 20)
burn(0.5)
print("done", flush=True)
sys.stdin.read()
"""
PARENT = f"""{BURN}
import subprocess
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
burn(0.2)
print(child.pid, flush=True)
sys.stdin.readline()
child.communicate()
print("alone", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def parent() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        yield process
        process.kill()


def test_a_tree_is_counted_by_process_also_after_one_ended(parent: subprocess.Popen[str]) -> None:
    assert parent.stdin is not None
    assert parent.stdout is not None
    tree = ProcessTree(parent.pid)
    child = int(parent.stdout.readline())
    assert tree.pids() == [parent.pid, child]
    both = tree.read()
    # Both also spend some time on starting Python, which on a busy machine is no fixed amount.
    assert both.engine_cpu >= 0.49
    assert both.front_end_cpu >= 0.19
    assert both.memory >= 64 << 20
    parent.stdin.write("\n")
    assert parent.stdout.readline() == "alone\n"
    alone = tree.read()
    assert tree.pids() == [parent.pid]
    assert alone.engine_cpu >= both.engine_cpu
    assert alone.memory < 64 << 20


def test_a_process_that_is_gone_uses_nothing() -> None:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    reading = ProcessTree(done.pid).read()
    assert (reading.front_end_cpu, reading.engine_cpu, reading.memory) == (0.0, 0.0, 0)
