"""Several asynchronous generators as one, in the order in which their items come."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TypeVar

T = TypeVar("T")
AHEAD = 2


def merged(sources: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[T, None]:
    """The items of all; the first error ends all, as does leaving early."""
    if len(sources) == 1:  # no task and no queue in the way of the usual request
        return sources[0]
    return _merged(sources)


async def _merged(sources: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[T, None]:
    """No source is asked for more while AHEAD items of each wait: where nobody takes them, all of them pause."""
    queue: asyncio.Queue[T | asyncio.Task[None]] = asyncio.Queue()
    room = asyncio.Semaphore(AHEAD * len(sources))
    tasks = [asyncio.create_task(_pump(source, queue, room)) for source in sources]
    for task in tasks:
        task.add_done_callback(queue.put_nowait)
    left = len(tasks)
    try:
        while left:
            got = await queue.get()
            if isinstance(got, asyncio.Task):
                got.result()
                left -= 1
            else:
                yield got
                room.release()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(
    source: AsyncGenerator[T, None], queue: "asyncio.Queue[T | asyncio.Task[None]]", room: asyncio.Semaphore
) -> None:
    async with aclosing(source) as items:
        async for item in items:
            await room.acquire()
            queue.put_nowait(item)
