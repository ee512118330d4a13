"""Work that would hold up the event loop, on a few threads of its own: many at once wait for each other, not the loop.

Grammars have other threads than prompts, so that neither waits for the other: these wait for the grammars' processes.
"""

import asyncio
import gc
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from chat_templates.errors import FormatError
from server.errors import ApiError

T = TypeVar("T")
_gc_lock = threading.Lock()
_gc_users: list[None] = []

LONG = 32_768  # bytes or characters from which reading or encoding would hold up other requests' tokens
THREADS = 2
SWITCH_SECONDS = 0.0005
"""After which a thread that computes in Python lets another one have its turn; CPython's own is 0.005. The event loop
gives its turn up for every connection that it looks at, so that with fifty connections beside three such threads one
round of it takes fifty times as long as this, or more."""
READING = ThreadPoolExecutor(1, "reading")
"""Of one thread: a parser lets nobody else run, and two in turn would keep the loop waiting for both."""
PROMPTS = ThreadPoolExecutor(THREADS, "prompts")
GRAMMARS = ThreadPoolExecutor(THREADS, "grammars")
SLOW_GRAMMARS = ThreadPoolExecutor(THREADS, "slow grammars")
"""Those that have been tried and take long, so that the others do not wait for them."""


def prefer_event_loop() -> None:
    """Has the threads of this process, all that are to come too, take short turns."""
    sys.setswitchinterval(SWITCH_SECONDS)


@contextmanager
def without_gc() -> Iterator[None]:
    """No garbage collection in the block, for what makes a million objects without cycles and would have it run on and
    on. At most a few blocks at once, none of them long.
    """
    with _gc_lock:
        _gc_users.append(None)
        gc.disable()
    try:
        yield
    finally:
        with _gc_lock:
            _gc_users.pop()
            if not _gc_users:
                # All is old now, what was frozen at the start too: a young collection, which is due at once, would go
                # through all that was made. A full one comes when there is a quarter more.
                gc.freeze()
                gc.unfreeze()
                gc.enable()


async def offload(threads: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    """What `work` returns or raises."""
    return await asyncio.get_running_loop().run_in_executor(threads, work)


async def offload_long(threads: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    """The same for work that makes very many objects: without garbage collection, and what an error holds of them is
    freed where it was made, not by the event loop.
    """
    return await offload(threads, lambda: _alone(work))


async def read_long(work: Callable[[], T], size: int) -> T:
    """The same for reading `size` bytes or characters: at once where they are few."""
    return work() if size < LONG else await offload_long(READING, work)


def _alone(work: Callable[[], T]) -> T:
    try:
        with without_gc():
            return work()
    except (ApiError, FormatError) as error:
        error.__context__ = None  # a traceback holds all variables of its functions
        raise error.with_traceback(None) from None
