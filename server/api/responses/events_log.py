"""The events of a response that is made in the background: kept for all who follow it, also from the middle."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence

from server.errors import BadRequestError
from server.http.sse import encode_event

TOO_LATE = {
    "type": "error",
    "code": "events_left",
    "message": "Events have left the store before they were read: ask for the response itself.",
    "param": None,
}


class LogBytes:
    """What the logs of all responses under way may take together: `most` bytes, of which `held` are."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.held = 0


class EventLog:
    """Encoded events in order: the n-th of all has the sequence number n. Where there is no room, the oldest leave."""

    def __init__(self, room: LogBytes) -> None:
        self.size = 0
        self.is_over = False
        self._room = room
        self._first = 0
        self._events: deque[bytes] = deque()
        self._more = asyncio.Event()

    def add(self, events: Sequence[bytes]) -> None:
        """Followers learn of them with `tell`, for this may be called away from the event loop."""
        self._events.extend(events)
        self._grow(sum(map(len, events)))
        while self._events and self._room.held > self._room.most:
            self._first += 1
            self._grow(-len(self._events.popleft()))

    def tell(self) -> None:
        """Wakes the followers."""
        self._more.set()
        self._more = asyncio.Event()

    def end(self) -> None:
        """There are no more; the log takes no room among those under way any longer."""
        self.is_over = True
        self._room.held -= self.size
        self.tell()

    def check(self, after: int) -> None:
        """Raises BadRequestError where not all events with larger numbers are there, or will be."""
        if after + 1 < self._first:
            message = f"the events up to {self._first - 1} have left the store: start after a later one."
        elif self.is_over and after + 1 >= self._first + len(self._events):
            message = f"the last event has the number {self._first + len(self._events) - 1}."
        else:
            return
        raise BadRequestError(f"starting_after: {message}", param="starting_after")

    async def follow(self, after: int = -1) -> AsyncGenerator[bytes, None]:
        """The events with numbers above `after`, to the last; an error is the last where some of them leave before."""
        number = after + 1
        while True:
            more = self._more
            if number < self._first:
                yield encode_event({**TOO_LATE, "sequence_number": number}, "error")
                return
            events = list(self._events)[number - self._first :]
            if events:
                number += len(events)
                yield b"".join(events)
            elif self.is_over:
                return
            else:
                await more.wait()

    def _grow(self, size: int) -> None:
        self.size += size
        self._room.held += size
