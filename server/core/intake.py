"""How much the server takes on: what may wait and for how long, and what may be promised of the KV cache.

What is beyond is refused at once with 503, before its prompt is tokenized where that can be told, and with the time
after which asking again makes sense. Counts are in choices, so that `n` weighs n. A choice whose place is free does not
count as one that waits. Of what may wait, thinkers leave a part to direct requests, as they do of the places. Who of
those that wait is next is the scheduler's part.
"""

import math
import time
from asyncio import get_running_loop
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, get_args

from engine.messages import Ready
from server.core.events import entry_bytes
from server.core.plan import Plan
from server.core.scheduler import FREE_SHARE, Claim, ModeLoad, Scheduler
from server.errors import OverloadedError
from server.metrics import Metrics
from server.modes.profile import ModeLimits
from server.settings import Settings

Reason = Literal["waiting", "mode_waiting", "in_flight", "waiting_tokens", "committed", "deadline", "logprobs"]
"""Why a request is refused, as the metrics count it."""
LONGEST_PAUSE = 60
"""Seconds; the openai SDK does not heed a longer Retry-After."""
RECENT = 64
"""So many starts of requests tell how fast the queue moves."""


class Intake:
    """Lets requests in, or raises OverloadedError. `limits`: of the modes, by name; `ready`: the engine's facts."""

    def __init__(
        self,
        settings: Settings,
        limits: Mapping[str, ModeLimits],
        scheduler: Scheduler,
        metrics: Metrics,
        ready: Callable[[], Ready | None],
    ) -> None:
        self._settings = settings
        self.limits = dict(limits)
        self._scheduler = scheduler
        self._metrics = metrics
        self._ready = ready
        self._preparing = 0
        self._in_flight = 0
        self._waiting_tokens = 0
        self._committed = 0  # pages
        self._kept = 0  # bytes of log-probabilities
        self._starts: deque[tuple[float, int]] = deque(maxlen=RECENT)  # when, and how many choices
        for reason in get_args(Reason):
            metrics.overloads.labels(reason)  # at zero: a rate over the first refusal needs the zero before it

    @contextmanager
    def preparing(self, mode: str, choices: int) -> Iterator[None]:
        """Counts choices as waiting while their prompts are read."""
        self._check(mode, choices)
        self._preparing += choices
        try:
            yield
        finally:
            self._preparing -= choices

    @contextmanager
    def claim(self, plan: Plan, on_start: Callable[[], None]) -> Iterator[Claim]:
        """The claim of a request, from the queue to its end. `on_start` is called when it gets its first place.

        A request that has none when its time is over ends in the scheduler's Overdue.
        """
        choices, pages, (first, *later) = len(plan.choices), self._pages(plan), plan.queues
        self._check(first.mode, choices)
        self._check_pages(pages)
        prompt = 0

        def started() -> None:
            self._starts.append((time.monotonic(), choices))
            self._waiting_tokens -= prompt
            on_start()

        claim = self._scheduler.claim(
            first.mode, plan.record.client, choices=choices, priority=first.priority, prompt_tokens=plan.prompt_tokens,
            on_start=started,
        )  # fmt: skip
        for queue in later:
            claim.after_draft = self._scheduler.claim(queue.mode, plan.record.client, priority=queue.priority)
        prompt = plan.prompt_tokens
        self._in_flight += choices
        self._committed += pages
        self._waiting_tokens += prompt
        left = self._deadline(first.mode) - (time.perf_counter() - plan.record.arrived)
        timer = get_running_loop().call_later(max(0.0, left), self._scheduler.give_up, claim)
        try:
            yield claim
        finally:
            timer.cancel()
            self._in_flight -= choices
            self._committed -= pages
            if not claim.started:
                self._waiting_tokens -= prompt
            self._scheduler.close(claim)

    @contextmanager
    def keeping(self, plan: Plan) -> Iterator[Callable[[int], None]]:
        """Counts the log-probabilities that a response keeps until it is whole.

        What it yields is told of so many more of them (`Piece.entries`), and raises OverloadedError for those beyond
        what all responses together may keep.
        """
        most, kept = self._settings.max_responses_bytes, 0

        def keep(entries: int) -> None:
            nonlocal kept
            size = entry_bytes(entries, plan.top_logprobs)
            if self._kept + size > most:
                raise self._refusal("logprobs", f"the log-probabilities of responses in work take {most >> 20} MiB")
            kept += size
            self._kept += size

        try:
            yield keep
        finally:
            self._kept -= kept

    def overdue(self, mode: str) -> OverloadedError:
        """The error for a request that had no place in time."""
        return self._refusal("deadline", f"no place was free within {self._deadline(mode):g} s")

    @property
    def most_choices(self) -> int:
        """How many choices one request may have so that it is ever let in."""
        settings = self._settings
        most = settings.max_waiting + self._scheduler.places
        return most if settings.max_in_flight is None else max(1, min(most, settings.max_in_flight))

    def _check(self, name: str, choices: int) -> None:
        settings, mode, waiting = self._settings, self._scheduler.modes[name], self._waiting()
        free = max(0, self._scheduler.free_for(thinks=mode.thinks))
        most = settings.max_waiting
        if mode.thinks:
            most -= most // FREE_SHARE
        if waiting + choices - free > most:
            raise self._refusal("waiting", f"{waiting} choices wait, and at most {settings.max_waiting} may")
        if settings.max_in_flight is not None and self._in_flight + self._preparing + choices > settings.max_in_flight:
            raise self._refusal("in_flight", f"at most {settings.max_in_flight} choices may run and wait")
        tokens = settings.max_waiting_tokens
        if tokens is not None and self._waiting_tokens >= tokens:
            raise self._refusal("waiting_tokens", f"prompts of {self._waiting_tokens} tokens wait")
        self._check_mode(name, mode, choices - min(free, max(0, mode.most - mode.running)))

    def _check_mode(self, name: str, mode: ModeLoad, more: float) -> None:
        most = self.limits[name].waiting
        if most is not None and mode.queued + more > most:
            raise self._refusal("mode_waiting", f"{mode.queued} choices wait in mode {name!r}, and at most {most} may")

    def _check_pages(self, pages: int) -> None:
        """One that is alone is let in however long it may get."""
        times, ready = self._settings.max_committed, self._ready()
        if times is None or ready is None or not self._committed:
            return
        groups = ready.page_groups
        pool = sum(group.used + group.cached for group in groups) + max((group.free for group in groups), default=0)
        if pool and self._committed + pages > times * pool:
            raise self._refusal("committed", f"the KV cache is promised {times:g} times over to requests in work")

    def _pages(self, plan: Plan) -> int:
        """The most pages that the request can come to hold, all groups together."""
        ready = self._ready()
        if ready is None or self._settings.max_committed is None:
            return 0
        return sum(
            min(-(-(choice.longest_prompt + choice.most_tokens) // need.page_size), need.most)
            for choice in plan.choices
            for need in ready.page_needs
        )

    def _deadline(self, mode: str) -> float:
        own = self.limits[mode].wait_seconds
        return self._settings.max_wait_seconds if own is None else own

    def _refusal(self, reason: Reason, why: str) -> OverloadedError:
        self._metrics.overloads.labels(reason).inc()
        return OverloadedError(why, self._pause())

    def _pause(self) -> int:
        """Seconds in which what waits now will have begun, at the pace of the last starts."""
        if len(self._starts) < 2:
            return self._settings.retry_after
        began = sum(choices for _, choices in self._starts)
        seconds = max(time.monotonic() - self._starts[0][0], 0.001)
        return max(1, min(LONGEST_PAUSE, math.ceil(self._waiting() * seconds / began)))

    def _waiting(self) -> int:
        return self._preparing + sum(mode.queued for mode in self._scheduler.modes.values())
