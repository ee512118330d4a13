"""An event loop whose clock is simulated: where nothing is ready, it is at once the time of the next timer.

So code that waits on an asyncio loop, as the server's admission does, runs in a simulation unchanged. simpy has an
event queue of its own, on which asyncio's futures do not work: to bridge them takes a loop like this one, beside simpy.
Packages with such a loop (async-solipsism, looptime) are for tests, with sockets or real time in them. What is used
here is public: asyncio's own loop takes a selector, and may have another `time`.
"""

import asyncio
import selectors


class _NextTimer(selectors.SelectSelector):
    """Waits for nothing: the time until the next timer has passed. No file is ever ready."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Raises RuntimeError where no timer is set."""
        if timeout is None:
            raise RuntimeError("all wait, and nothing is left to happen")
        self.now += timeout
        return []


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Begins at 0; in seconds."""

    def __init__(self) -> None:
        self._clock = _NextTimer()
        super().__init__(self._clock)

    def time(self) -> float:
        """The simulated time."""
        return self._clock.now
