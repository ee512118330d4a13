"""The child of a replica: a script in the place of `twogear serve`."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import psutil
import pytest

from deploy.ray.child import Child, ChildError
from tests.doc_blocks import ROOT

READY = "import sys, time; print('Ready after 1 s at http://127.0.0.1:1 (x)', file=sys.stderr, flush=True)"
PARENT = f"""
import asyncio, sys
from deploy.ray.child import Child
async def main():
    child = Child([sys.executable, "-c", {READY + "; time.sleep(600)"!r}], {{}}, print)
    await child.start()
    print(child.pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


def child(code: str, lost: Callable[[], None] = lambda: None) -> Child:
    return Child([sys.executable, "-c", code], dict(os.environ), lost)


async def test_it_is_ready_when_it_says_so_and_ends_when_it_is_told() -> None:
    lost = threading.Event()
    one = child(READY + "; time.sleep(600)", lost.set)
    assert await one.start() == "http://127.0.0.1:1"
    assert psutil.Process(one.pid).cmdline()[1] == "-c"
    await one.end(60)
    assert not psutil.pid_exists(one.pid)
    assert not lost.is_set()


async def test_its_loss_is_told() -> None:
    lost = threading.Event()
    await child(READY, lost.set).start()
    assert await asyncio.to_thread(lost.wait, 60)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import sys; print('a word', file=sys.stderr); sys.exit('twogear: error: no such folder')", "no such folder"),
        ("import sys; sys.exit('nothing of ours')", "ended with 1: nothing of ours"),
        ("import os; os.kill(os.getpid(), 9)", "ended with -9"),
    ],
)
async def test_why_it_did_not_start_is_told(code: str, told: str) -> None:
    with pytest.raises(ChildError) as caught:
        await child(code).start()
    assert str(caught.value).endswith(told)


async def test_a_command_that_is_not_there_is_told() -> None:
    with pytest.raises(ChildError, match=r"twogear: error: cannot run /no/such: No such file"):
        await Child(["/no/such", "serve"], {}, lambda: None).start()


async def test_no_handler_of_a_library_runs_between_fork_and_exec() -> None:
    """Those of gRPC start threads there: in a replica on Ray, one of them aborted the child."""
    forked: list[int] = []
    os.register_at_fork(before=lambda: forked.append(1))
    one = child(READY + "; time.sleep(600)")
    await one.start()
    await one.end(60)
    assert forked == []


def test_it_dies_with_its_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
        parent.kill()
    end = time.monotonic() + 60
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end
        time.sleep(0.05)
