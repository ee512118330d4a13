"""Work that would hold up the event loop, on a few threads of its own: many at once wait for each other, not the loop.

Grammars have other threads than prompts, so that neither waits for the other: these wait for the grammars' processes.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

LONG = 32_768  # bytes or characters from which reading or encoding would hold up other requests' tokens
THREADS = 2
READING = ThreadPoolExecutor(1, "reading")
"""Of one thread: a parser lets nobody else run, and two in turn would keep the loop waiting for both."""
PROMPTS = ThreadPoolExecutor(THREADS, "prompts")
GRAMMARS = ThreadPoolExecutor(THREADS, "grammars")


async def offload(threads: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    """What `work` returns or raises."""
    return await asyncio.get_running_loop().run_in_executor(threads, work)


async def read_long(work: Callable[[], T], size: int) -> T:
    """The same for reading `size` bytes or characters: at once where they are few."""
    return work() if size < LONG else await offload(READING, work)
