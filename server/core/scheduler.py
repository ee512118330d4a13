"""Which generations run in the engine now and which wait, so that short requests do not wait behind long thinkers.

The engine has a number of places. Two lanes share them: ANSWER (modes that answer at once, and thinkers whose thinking
is closed) and THINK. ANSWER may take every place. THINK leaves some free: an answer that finds one starts in the next
step of the engine. Where answers need more, thinkers are set back: they give up their place and go on later, from their
pages in the prefix cache. Some places they always keep. Within a lane, a place goes to the request that holds the
fewest, of several to the one that came first: so a request of 128 choices weighs 128.

Knows places and requests, neither tokens nor HTTP. Runs in one event loop.
"""

import asyncio
import heapq
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import count
from time import perf_counter

FREE_SHARE = 8
"""THINK leaves one of so many places to answers."""
KEPT_SHARE = 4
"""Of so many places, thinkers always keep one."""
REQUEST_SHARE = 2
"""Choices that cannot be set back hold, for one request, at most one of so many places."""


class Lane(IntEnum):
    """What a generation does; the lower goes first."""

    ANSWER = 0
    THINK = 1


@dataclass(eq=False)
class Claim:
    """What one request holds: `held` places, and the choices that wait for one. `arrived` counts requests.

    `placed`: when it got its first place, on the clock of perf_counter.
    """

    arrived: int
    held: int = 0
    placed: float | None = None
    waiting: dict[Lane, "deque[_Waiter]"] = field(default_factory=lambda: {lane: deque() for lane in Lane})


@dataclass(eq=False)
class Place:
    """A place in the engine. `revoked`: it has to be left as soon as that loses nothing, and another waited for."""

    claim: Claim
    lane: Lane
    can_set_back: bool
    revoked: bool = False


@dataclass(eq=False)
class _Waiter:
    can_set_back: bool
    place: "asyncio.Future[Place]"


class Scheduler:
    """Gives out the engine's places, of which there are `places()`."""

    def __init__(self, places: Callable[[], int]) -> None:
        self._places = places
        self._arrivals = count()
        self._running: dict[Lane, set[Place]] = {lane: set() for lane in Lane}
        self._queues: dict[Lane, list[tuple[int, int, Claim]]] = {lane: [] for lane in Lane}  # (held, arrived, claim)
        self._queued: dict[Lane, set[Claim]] = {lane: set() for lane in Lane}  # those in the queue, once each
        self._waiting = dict.fromkeys(Lane, 0)

    def claim(self) -> Claim:
        """A new request's."""
        return Claim(next(self._arrivals))

    def running(self, lane: Lane) -> int:
        """How many places a lane holds."""
        return len(self._running[lane])

    def waiting(self, lane: Lane) -> int:
        """How many choices wait for a place."""
        return self._waiting[lane]

    @asynccontextmanager
    async def place(self, claim: Claim, lane: Lane, *, can_set_back: bool) -> AsyncIterator[Place]:
        """A place for the block, once there is one. `can_set_back`: whether a generation in it may be broken off and
        gone on with, the tokens being the same.
        """
        place = await self._wait(claim, lane, can_set_back=can_set_back)
        try:
            yield place
        finally:
            self._leave(place)

    def answers(self, place: Place) -> None:
        """The thinking in this place is closed: from here on it is an answer's."""
        if place.lane is Lane.THINK:
            self._running[Lane.THINK].remove(place)
            place.lane = Lane.ANSWER
            place.revoked = False
            self._running[Lane.ANSWER].add(place)
            self._dispatch()

    async def _wait(self, claim: Claim, lane: Lane, *, can_set_back: bool) -> Place:
        waiter = _Waiter(can_set_back, asyncio.get_running_loop().create_future())
        claim.waiting[lane].append(waiter)
        self._waiting[lane] += 1
        if claim not in self._queued[lane]:
            self._queued[lane].add(claim)
            heapq.heappush(self._queues[lane], (claim.held, claim.arrived, claim))
        self._dispatch()
        try:
            return await waiter.place
        except asyncio.CancelledError:
            if waiter.place.done() and not waiter.place.cancelled():
                self._leave(waiter.place.result())
            elif waiter in claim.waiting[lane]:
                claim.waiting[lane].remove(waiter)
                self._waiting[lane] -= 1
            raise

    def _leave(self, place: Place) -> None:
        self._running[place.lane].remove(place)
        place.claim.held -= 1
        self._dispatch()

    def _dispatch(self) -> None:
        """Gives out what is free, answers first, and takes back what they lack."""
        for lane in Lane:
            while (claim := self._next(lane)) is not None and self._may_run(claim, lane):
                self._grant(claim, lane)
        if self._waiting[Lane.ANSWER] or self._waiting[Lane.THINK]:
            self._set_back()

    def _next(self, lane: Lane) -> Claim | None:
        """The request whose turn it is, of those that wait."""
        queue = self._queues[lane]
        while queue:
            held, arrived, claim = queue[0]
            if not claim.waiting[lane]:
                heapq.heappop(queue)
                self._queued[lane].remove(claim)
            elif held != claim.held:
                heapq.heapreplace(queue, (claim.held, arrived, claim))
            else:
                return claim
        return None

    def _may_run(self, claim: Claim, lane: Lane) -> bool:
        places = self._places()
        if sum(map(len, self._running.values())) >= places:
            return False
        if lane is Lane.THINK and len(self._running[lane]) >= max(1, places - places // FREE_SHARE):
            return False
        return self._may_take(claim, lane) > 0

    def _may_take(self, claim: Claim, lane: Lane) -> int:
        """How many places a request may take beside those that it holds, however many are free."""
        waiting = claim.waiting[lane]
        if not waiting or waiting[0].can_set_back:
            return len(waiting)
        return min(len(waiting), max(1, self._places() // REQUEST_SHARE) - claim.held)

    def _grant(self, claim: Claim, lane: Lane) -> None:
        waiter = claim.waiting[lane].popleft()
        self._waiting[lane] -= 1
        if waiter.place.cancelled():
            return
        place = Place(claim, lane, waiter.can_set_back)
        claim.held += 1
        if claim.placed is None:
            claim.placed = perf_counter()
        self._running[lane].add(place)
        waiter.place.set_result(place)

    def _set_back(self) -> None:
        """Revokes places of thinkers for answers that wait, then those of requests that hold more than their share."""
        staying = [place for place in self._running[Lane.THINK] if not place.revoked]
        leaving = sum(place.revoked for places in self._running.values() for place in places)
        able = sorted((place for place in staying if place.can_set_back), key=lambda place: place.claim.arrived)
        most = min(len(able), len(staying) - self._places() // KEPT_SHARE)
        for place in able[len(able) - max(0, min(most, self._missing(leaving + most) - leaving)) :]:
            place.revoked = True
        if leaving == 0:
            for lane in Lane:
                self._share(lane)

    def _missing(self, most: int) -> int:
        """How many places the answers that wait would take if there were any; not counted beyond `most`."""
        missing = 0
        for _, _, claim in self._queues[Lane.ANSWER]:
            if missing >= most:
                break
            missing += max(0, self._may_take(claim, Lane.ANSWER))
        return missing

    def _share(self, lane: Lane) -> None:
        """Takes one place from the request that holds most, if the next in line holds at least two fewer."""
        claim = self._next(lane)
        able = [place for place in self._running[lane] if place.can_set_back and not place.revoked]
        if claim is None or not able or self._may_take(claim, lane) <= 0:
            return
        most = max(able, key=lambda place: (place.claim.held, place.claim.arrived))
        if most.claim.held >= claim.held + 2:
            most.revoked = True
