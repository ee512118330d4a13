"""Fewer, fuller events where many streams run: each costs the front end as much with one token as with several."""

import asyncio
from collections import deque
from typing import Protocol

MANY = 200
"""Streams up to which each token is told as it comes. An event takes 30 µs of the front end's one core, so that as many
streams with 80 steps a second take half of it."""
REST = 0.02
"""Seconds between two events of a stream where there are more."""


class Resting(Protocol):
    """What may be told to wait."""

    def release(self) -> bool:
        """Its rest is over; whether anything had come meanwhile, for which it now rests again."""
        ...


class Pacer:
    """Has streams rest after each event while there are more than `many` of them. `streams`: how many there are, of all
    engines. Belongs to one event loop.
    """

    __slots__ = ("_many", "_rest", "_resting", "_timer", "streams")

    def __init__(self, many: int = MANY, rest: float = REST) -> None:
        self.streams = 0
        self._many = many
        self._rest = rest
        self._resting = deque[tuple[float, Resting]]()  # all rest equally long, so the first is the next to be released
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_on(self) -> bool:
        """Whether streams are to rest."""
        return self.streams > self._many

    def rest(self, stream: Resting) -> None:
        """Releases `stream` after a while."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._rest
        self._resting.append((until, stream))
        if self._timer is None:
            self._timer = loop.call_at(until, self._release, loop)

    def _release(self, loop: asyncio.AbstractEventLoop) -> None:
        resting, now = self._resting, loop.time()
        until = now + self._rest
        while resting and resting[0][0] <= now:
            _, stream = resting.popleft()
            if stream.release():
                resting.append((until, stream))
        self._timer = loop.call_at(resting[0][0], self._release, loop) if resting else None
