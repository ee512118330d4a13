"""Tells when an engine has been silent for longer than its own steps, or its own start, make plausible.

Counts time and signs of life only. What is done about a silent engine is the engine client's part.
"""

import time
from typing import NamedTuple

TICK = 0.25
"""Seconds between two looks. A look adds at most twice that to a silence: where this process itself stood still, the
engine is not to blame."""
LEAST = 30.0
"""Seconds that are never too long, however short the steps are: a step may compile a kernel that is new to it."""
FACTOR = 20
"""A step may take so many times the longest one of late."""
FIRST_SIGNS = 8
"""So many signs have to come before an engine's own steps say what is plausible."""
RECENT = 60.0
"""Seconds. The longest step is that of the last one or two such spans."""
LOADING_FACTOR = 10
"""A start that computes may go without a word so many times as long as one that does not."""


class _Longest(NamedTuple):
    """Of a span of time: the longest silence in seconds, and the most prompt tokens that were due in one."""

    silence: float = 0.0
    due: int = 0

    def with_one(self, silence: float, due: int) -> "_Longest":
        return _Longest(max(self.silence, silence), max(self.due, due))


class StepWatch:
    """The silence of an engine that has work. `most` seconds are too long for any step."""

    def __init__(self, most: float) -> None:
        self._most = most
        self._signs = 0
        self._recent = [_Longest(), _Longest()]  # of this span and the one before
        self._span_began = time.monotonic()
        self._last: float | None = None  # when the last sign came, or work; None without work
        self._due = 0  # the most prompt tokens since then
        self.silence = 0.0
        """Seconds with work and without a sign, as far as this process was awake."""

    def sign(self, *, works: bool) -> None:
        """A step was reported; `works`: there is more to do."""
        now = time.monotonic()
        if self._last is not None:
            self._signs += 1
            if now - self._span_began > RECENT:
                self._recent = [_Longest(), self._recent[0]]
                self._span_began = now
            self._recent[0] = self._recent[0].with_one(now - self._last, self._due)
        self._last = now if works else None
        self._due = 0
        self.silence = 0.0

    def tick(self, seconds: float, *, works: bool, due: int) -> bool:
        """So much time has passed; whether the engine hangs. `due`: prompt tokens whose first answer is awaited."""
        if not works:
            self._last, self.silence = None, 0.0
            return False
        if self._last is None:
            self._last = time.monotonic()
        self._due = max(self._due, due)
        self.silence += min(seconds, 2 * TICK)
        return self.silence > self.limit()

    def limit(self) -> float:
        """How many seconds of silence are plausible now."""
        if self._signs < FIRST_SIGNS:
            return self._most
        longest = max(one.silence for one in self._recent)
        known = max(1, *(one.due for one in self._recent))
        return min(self._most, max(LEAST, FACTOR * longest * max(1.0, self._due / known)))


class LoadWatch:
    """The silence of an engine that starts: no stage, no line in its log, no processor time.

    `most` seconds without any of these are too long. Where it computes, ten times as many without a stage or a line
    are.
    """

    def __init__(self, most: float) -> None:
        self._most = most
        self._without_a_word = self._still = 0.0
        self._processor = -1

    @property
    def silence(self) -> float:
        """Seconds without a stage or a line."""
        return self._without_a_word

    def sign(self) -> None:
        """A stage was reported, or a line written."""
        self._without_a_word = self._still = 0.0

    def tick(self, seconds: float, processor: int) -> bool:
        """So much time has passed; whether the start hangs. `processor`: the processor time taken so far, any unit."""
        passed = min(seconds, 2 * TICK)
        self._without_a_word += passed
        self._still = 0.0 if processor != self._processor else self._still + passed
        self._processor = processor
        return self._still > self._most or self._without_a_word > LOADING_FACTOR * self._most
