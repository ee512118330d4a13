"""What the engine tells of its load: Stats, after a change, a few times a second."""

import math
import time
from bisect import bisect_left

from engine.messages import STEP_TOKENS, Stats
from engine.transport import Channel
from engine.vllm_internals.attach import Pages

_INTERVAL = 0.25
_SHARE_IDLE, _SHARE_BUSY = 50, 500
"""Counting pages may take one 50th of the time, however large the cache; a tenth of that while requests run, since
going through all pages also drives what a step needs out of the processor's cache."""


class StepCounts:
    """Steps by how many tokens they computed, as Stats has them."""

    def __init__(self) -> None:
        self.counts = [0] * (len(STEP_TOKENS) + 1)
        self.sum = 0

    def add(self, tokens: int) -> None:
        """A step has computed so many tokens."""
        self.counts[bisect_left(STEP_TOKENS, tokens)] += 1
        self.sum += tokens


class StatsSender:
    """Sends Stats after a change, not more often than a few times a second."""

    def __init__(self, pages: Pages, connection: Channel, steps: StepCounts) -> None:
        self._pages = pages
        self._connection = connection
        self._steps = steps
        self._last: Stats | None = None
        self._changed = False
        self._sent = -math.inf
        self._cost = 0.0  # seconds

    def changed(self) -> None:
        """The counts may differ from those last sent."""
        self._changed = True

    def seconds_left(self) -> float | None:
        """Until the next message is due; None if there is nothing to tell."""
        return self._seconds_left(_SHARE_IDLE) if self._changed else None

    def send_if_due(self) -> None:
        """Counts and sends, if it is time and the counts are new."""
        share = _SHARE_BUSY if self._pages.has_work() else _SHARE_IDLE
        if not self._changed or self._seconds_left(share) > 0:
            return
        start = time.thread_time()
        running, waiting = self._pages.requests()
        pages, steps = self._pages, self._steps
        stats = Stats(running, waiting, pages.count(), pages.preemptions(), tuple(steps.counts), steps.sum)
        if stats != self._last:
            self._connection.send(stats)
            self._last = stats
        self._changed = False
        self._sent = time.monotonic()
        self._cost = time.thread_time() - start

    def _seconds_left(self, share: int) -> float:
        return max(self._sent + max(_INTERVAL, share * self._cost) - time.monotonic(), 0.0)
