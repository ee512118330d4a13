"""Work that would hold up the event loop, on a few threads of its own: many at once wait for each other, not the loop.

Grammars have other threads than prompts, so that neither waits for the other: these wait for the grammars' processes.
"""

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
_gc_lock = threading.Lock()
_gc_users: list[None] = []

LONG = 32_768  # bytes or characters from which reading or encoding would hold up other requests' tokens
THREADS = 2
READING = ThreadPoolExecutor(1, "reading")
"""Of one thread: a parser lets nobody else run, and two in turn would keep the loop waiting for both."""
PROMPTS = ThreadPoolExecutor(THREADS, "prompts")
GRAMMARS = ThreadPoolExecutor(THREADS, "grammars")
SLOW_GRAMMARS = ThreadPoolExecutor(THREADS, "slow grammars")
"""Those that have been tried and take long, so that the others do not wait for them."""


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
                gc.enable()


async def offload(threads: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    """What `work` returns or raises."""
    return await asyncio.get_running_loop().run_in_executor(threads, work)


async def read_long(work: Callable[[], T], size: int) -> T:
    """The same for reading `size` bytes or characters: at once where they are few."""
    return work() if size < LONG else await offload(READING, work)
