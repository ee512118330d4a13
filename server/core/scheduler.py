"""Which generations run in the engine now and which wait, so that short requests do not wait behind long thinkers.

The engine has a number of places. A choice holds one from its first token to its last, whatever it does meanwhile. Its
lane says what that is: DIRECT (of a mode that answers at once), THINK, or ANSWER (a thinker whose thinking is closed).

- **Who may run.** DIRECT may take every place but those that thinkers keep, one of KEPT_SHARE. Thinkers leave one of
  FREE_SHARE to DIRECT: a direct request that finds it free starts in the engine's next step. A mode may have a most.
- **Who is next.** The lower priority, then the lower lane, then the client that was given the fewest tokens, then the
  request that holds the fewest places, then the one that came first. So a request of 128 choices weighs 128.
- **Who is set back.** Where direct requests lack places, thinkers give up theirs and go on later, from their pages in
  the prefix cache: first those that think, of these the ones that came last. So does whoever holds more than his share
  where another waits: a client before others, a request before others of its client.
- **Who does not read** what comes of its place leaves it at once where it is set back, and else after a while
  (`absent_readers`).

No thinker starves: whatever else comes, thinkers as a whole have the places that they keep. If no generation takes
longer than S, and T choices that think are there before it, a thinker has waited for less than S * (T / kept + 1).

Tokens are counted as in "Fairness in Serving Large Language Models" (Sheng et al., OSDI 2024): a client's counter grows
with what it is given, and one that comes back begins no lower than the one that was served last, so that nobody saves
up. That is deficit round robin for work whose length is known only afterwards.

Knows places, requests and counts of tokens, neither texts nor HTTP. Runs in one event loop.
"""

import asyncio
import heapq
import math
from bisect import insort
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import chain, count

from server.core.absent_readers import AbsentReaders, PlaceReader

FREE_SHARE = 8
"""Thinkers leave one of so many places to direct requests."""
KEPT_SHARE = 4
"""Of so many places, thinkers always keep one, where there are two at least."""
REQUEST_SHARE = 2
"""Choices that cannot be set back hold, for one request, at most one of so many places."""


class Lane(IntEnum):
    """What a generation does; the lower goes first."""

    DIRECT = 0
    ANSWER = 1
    THINK = 2

    @property
    def thinks(self) -> bool:
        """Whether it is of a mode that thinks."""
        return self is not Lane.DIRECT


class Overdue(Exception):  # noqa: N818 - reads as what it says
    """The request was given up before it had its first place."""


@dataclass(eq=False)
class ModeLoad:
    """How many choices of one mode, which `thinks` or does not, run, wait and are yet to come; `most` may run."""

    thinks: bool
    most: float = math.inf
    running: int = 0
    waiting: int = 0
    coming: int = 0

    @property
    def queued(self) -> int:
        """How many wait, or will as soon as they come."""
        return self.waiting + self.coming

    @property
    def is_full(self) -> bool:
        """Whether it has all that it may."""
        return self.running >= self.most

    @property
    def startable(self) -> float:
        """How many of those that wait the mode itself would let run."""
        return max(0, min(self.waiting, self.most - self.running))


@dataclass(eq=False)
class Share:
    """What one client has of one mode. `tokens`: its counter. `widths`: how many of its requests hold so
    many places.
    """

    mode: ModeLoad
    tokens: int = 0
    held: int = 0
    waiting: int = 0
    widths: Counter[int] = field(default_factory=Counter)

    @property
    def widest(self) -> int:
        """The most places that one of its requests holds."""
        return max((width for width, requests in self.widths.items() if requests), default=0)


@dataclass(eq=False)
class Claim:
    """What one request holds: `held` places, and the choices that wait for one. `arrived` counts requests.

    `coming`: how many of its choices were announced and have not asked for a place yet. `started`: it has or had a
    place; `on_start` is called when it gets the first. `after_draft`: what its choices hold once they think, where they
    begin in another mode.
    """

    arrived: int
    share: Share
    priority: int
    prompt_tokens: int
    on_start: Callable[[], None] | None = None
    coming: int = 0
    started: bool = False
    held: int = 0
    after_draft: "Claim | None" = None
    waiting: dict[Lane, "deque[_Waiter]"] = field(default_factory=lambda: {lane: deque() for lane in Lane})

    def lane(self, *, thinking: bool) -> Lane:
        """That of a choice which thinks now, or does not."""
        if not self.share.mode.thinks:
            return Lane.DIRECT
        return Lane.THINK if thinking else Lane.ANSWER


@dataclass(eq=False)
class Place:
    """A place in the engine. `revoked`: it has to be left as soon as that loses nothing, and another waited for.

    `is_left`: it is another's already.
    """

    claim: Claim
    lane: Lane
    can_set_back: bool
    revoked: bool = False
    is_left: bool = False
    reader: PlaceReader = field(default_factory=PlaceReader)


@dataclass(eq=False)
class _Waiter:
    can_set_back: bool
    place: "asyncio.Future[Place]"


class _Line:
    """Those that wait with one priority in one lane. `room`: how many more places a request may take there."""

    def __init__(self, priority: int, lane: Lane, room: Callable[[Claim, Lane], int]) -> None:
        self.priority = priority
        self.lane = lane
        self.claims: set[Claim] = set()
        self._room = room
        self._heaps: dict[Share, list[tuple[int, int, int, Claim]]] = {}  # (held, arrived, number of the entry, claim)
        self._numbers = count()

    def put(self, claim: Claim) -> None:
        """Adds a claim; one that is there has to be put again when it holds fewer places than before."""
        self.claims.add(claim)
        entry = (claim.held, claim.arrived, next(self._numbers), claim)
        heapq.heappush(self._heaps.setdefault(claim.share, []), entry)

    def firsts(self) -> Iterator[Claim]:
        """Whose turn it is, of each client the first; the client that was given the fewest tokens first."""
        for share in sorted(self._heaps, key=lambda share: (share.tokens, share.held)):
            claim = self._first(share)
            if claim is not None:
                yield claim

    def _first(self, share: Share) -> Claim | None:
        """What has left is dropped, as is what was put again or will be: who may not take another place holds some."""
        heap = self._heaps[share]
        while heap:
            held, arrived, number, claim = heap[0]
            if claim not in self.claims or held > claim.held or not self._room(claim, self.lane):
                heapq.heappop(heap)
            elif held < claim.held:
                heapq.heapreplace(heap, (claim.held, arrived, number, claim))
            else:
                return claim
        del self._heaps[share]
        return None


class Scheduler:
    """Gives out the engine's places, of which there are `places()`, to the requests of `modes`."""

    def __init__(self, places: Callable[[], int], modes: Mapping[str, ModeLoad]) -> None:
        self.modes = dict(modes)
        self._places = places
        self._arrivals = count()
        self._shares: dict[tuple[str, str], Share] = {}  # by mode and client
        self._running: dict[Lane, set[Place]] = {lane: set() for lane in Lane}
        self._waiting = dict.fromkeys(Lane, 0)
        self._lines: dict[tuple[int, Lane], _Line] = {}
        self._order: list[tuple[int, Lane]] = []  # of the lines
        self._last_served = {False: 0, True: 0}  # the counter of the client served last, by whether it thinks
        self._absent = AbsentReaders(lambda: [(place.reader, place.revoked) for place in self._all_running()])

    def adopt(self, modes: Mapping[str, ModeLoad]) -> None:
        """Has requests that come from now on be of `modes`. What runs and waits stays as it is, and counts on."""
        for name, load in modes.items():
            known = self.modes.get(name)
            if known is not None and known.thinks is load.thinks:
                known.most = load.most
                continue
            self.modes[name] = load
            self._shares = {key: share for key, share in self._shares.items() if key[0] != name}

    def claim(
        self,
        mode: str,
        client: str = "",
        *,
        choices: int = 0,
        priority: int = 0,
        prompt_tokens: int = 0,
        on_start: Callable[[], None] | None = None,
    ) -> Claim:
        """A new request's of a client; so many choices are announced, until `close`."""
        share = self._shares.setdefault((mode, client), Share(self.modes[mode]))
        share.mode.coming += choices
        return Claim(next(self._arrivals), share, priority, prompt_tokens, on_start, choices)

    def close(self, claim: Claim) -> None:
        """No more choices of the request come."""
        claim.share.mode.coming -= claim.coming
        claim.coming = 0

    def running(self, lane: Lane) -> int:
        """How many places a lane holds."""
        return len(self._running[lane])

    def waiting(self, lane: Lane) -> int:
        """How many choices wait for a place."""
        return self._waiting[lane]

    @property
    def places(self) -> int:
        """How many there are."""
        return self._places()

    def free_for(self, *, thinks: bool) -> int:
        """How many places are free for one kind of modes, whoever it be of them."""
        places, thinkers = self._places(), self._thinkers
        free = places - sum(map(len, self._running.values()))
        if thinks:
            return min(free, max(1, places - places // FREE_SHARE) - thinkers)
        owed = min(self._kept - thinkers, sum(mode.startable for mode in self.modes.values() if mode.thinks))
        return free - max(0, int(owed))

    @asynccontextmanager
    async def place(self, claim: Claim, *, thinking: bool, can_set_back: bool) -> AsyncIterator[Place]:
        """A place for the block, once there is one. `can_set_back`: whether a generation in it may be broken off and
        gone on with, the tokens being the same. Raises Overdue where the request is given up before it had any.
        """
        place = await self._wait(claim, claim.lane(thinking=thinking), can_set_back=can_set_back)
        try:
            yield place
        finally:
            self.leave(place)

    def spare(self, claim: Claim) -> Place | None:
        """One more place for what thinks, to be left by `leave`, if one is free that nobody waits for. It can be set
        back.
        """
        mode = claim.share.mode
        if mode.is_full or any(self._waiting.values()) or self.free_for(thinks=mode.thinks) <= 0:
            return None
        return self._take(claim, Lane.THINK, can_set_back=True)

    def is_wanted(self, place: Place) -> bool:
        """Whether a place got by `spare` is to be left."""
        return place.revoked or any(self._waiting.values())

    def answers(self, place: Place, *, can_set_back: bool) -> None:
        """The thinking in this place is closed: it goes on there, as an answer, which can be set back or not."""
        if place.is_left:
            return
        self._running[place.lane].remove(place)
        place.lane, place.can_set_back = Lane.ANSWER, can_set_back
        self._running[place.lane].add(place)

    def count(self, place: Place, tokens: int) -> None:
        """So many tokens were generated in this place."""
        place.claim.share.tokens += tokens

    def leave(self, place: Place) -> None:
        """The place is free, though its block may still run, to read what came of it."""
        if place.is_left:
            return
        place.is_left = True
        claim = place.claim
        self._running[place.lane].remove(place)
        claim.share.mode.running -= 1
        self._hold(claim, -1)
        for lane in Lane:
            if claim.waiting[lane]:
                self._lines[claim.priority, lane].put(claim)
        self._dispatch()

    def give_up(self, claim: Claim) -> None:
        """A request that never had a place shall wait no longer."""
        if claim.started:
            return
        for waiters in claim.waiting.values():
            for waiter in waiters:
                if not waiter.place.done():
                    waiter.place.set_exception(Overdue())

    async def _wait(self, claim: Claim, lane: Lane, *, can_set_back: bool) -> Place:
        waiter = _Waiter(can_set_back, asyncio.get_running_loop().create_future())
        self._enqueue(claim, lane, waiter)
        self._dispatch()
        try:
            return await waiter.place
        except BaseException:
            future = waiter.place
            if future.done() and not future.cancelled() and future.exception() is None:
                self.leave(future.result())
            elif waiter in claim.waiting[lane]:
                claim.waiting[lane].remove(waiter)
                self._one_fewer_waits(claim, lane)
            raise

    def _enqueue(self, claim: Claim, lane: Lane, waiter: _Waiter) -> None:
        share = claim.share
        if share.waiting == 0:
            share.tokens = max(share.tokens, self._last_served[share.mode.thinks])
        if claim.coming:
            claim.coming -= 1
            share.mode.coming -= 1
        claim.waiting[lane].append(waiter)
        self._waiting[lane] += 1
        share.waiting += 1
        share.mode.waiting += 1
        line = self._line(claim.priority, lane)
        if claim not in line.claims:
            line.put(claim)

    def _line(self, priority: int, lane: Lane) -> _Line:
        key = priority, lane
        if key not in self._lines:
            self._lines[key] = _Line(priority, lane, self._room)
            insort(self._order, key)
        return self._lines[key]

    def _one_fewer_waits(self, claim: Claim, lane: Lane) -> None:
        self._waiting[lane] -= 1
        claim.share.waiting -= 1
        claim.share.mode.waiting -= 1
        if claim.waiting[lane]:
            return
        line = self._lines[claim.priority, lane]
        line.claims.remove(claim)
        if not line.claims:
            del self._lines[claim.priority, lane]
            self._order.remove((claim.priority, lane))

    def _hold(self, claim: Claim, more: int) -> None:
        """Notes that a claim holds one place more or fewer."""
        share = claim.share
        if claim.held:
            share.widths[claim.held] -= 1
        claim.held += more
        share.held += more
        if claim.held:
            share.widths[claim.held] += 1

    def _dispatch(self) -> None:
        """Gives out what is free, and takes back what is lacking."""
        for key in list(self._order):
            while (line := self._lines.get(key)) is not None and self.free_for(thinks=line.lane.thinks) > 0:
                claim = next((one for one in line.firsts() if not one.share.mode.is_full), None)
                if claim is None:
                    break
                self._grant(claim, line.lane)
        if self._order:
            self._set_back()

    def _all_running(self) -> Iterator[Place]:
        return chain.from_iterable(self._running.values())

    @property
    def _thinkers(self) -> int:
        return len(self._running[Lane.ANSWER]) + len(self._running[Lane.THINK])

    @property
    def _kept(self) -> int:
        """How many places are the thinkers' whatever else comes."""
        places = self._places()
        return max(places // KEPT_SHARE, 1 if places > 1 else 0)

    def _room(self, claim: Claim, lane: Lane) -> int:
        """How many places a request that waits may take beside those that it holds, however many are free."""
        waiting = claim.waiting[lane]
        if waiting[0].can_set_back:
            return len(waiting)
        return max(0, min(len(waiting), max(1, self._places() // REQUEST_SHARE) - claim.held))

    def _grant(self, claim: Claim, lane: Lane) -> None:
        waiter = claim.waiting[lane].popleft()
        self._one_fewer_waits(claim, lane)
        if waiter.place.done():  # it left, or was given up
            return
        share = claim.share
        self._last_served[share.mode.thinks] = max(self._last_served[share.mode.thinks], share.tokens)
        place = self._take(claim, lane, can_set_back=waiter.can_set_back)
        if not claim.started:
            claim.started = True
            share.tokens += claim.prompt_tokens
            if claim.on_start is not None:
                claim.on_start()
        waiter.place.set_result(place)
        self._absent.watch()

    def _take(self, claim: Claim, lane: Lane, *, can_set_back: bool) -> Place:
        place = Place(claim, lane, can_set_back)
        self._hold(claim, 1)
        claim.share.mode.running += 1
        self._running[lane].add(place)
        return place

    def _revoke(self, place: Place) -> None:
        place.revoked = True
        self._absent.hurry(place.reader)

    def _set_back(self) -> None:
        """Revokes places of thinkers for direct requests that wait, then those of who holds more than his share."""
        leaving = sum(place.revoked for place in self._all_running())
        if self._waiting[Lane.DIRECT]:
            leaving = self._make_room(leaving)
        if leaving == 0:
            for key in self._order:
                self._even_out(self._lines[key])

    def _make_room(self, leaving: int) -> int:
        """Revokes as many places of thinkers as direct requests lack, `leaving` being revoked already; how many are."""
        staying = [place for lane in (Lane.ANSWER, Lane.THINK) for place in self._running[lane] if not place.revoked]
        able = [place for place in staying if place.can_set_back]
        able.sort(key=lambda place: (place.claim.priority, place.lane, place.claim.arrived))
        spare = min(len(able), len(staying) - self._kept)
        coming = leaving
        for priority, lane in self._order:
            if lane is not Lane.DIRECT:
                continue
            wanted = self._wanted(self._lines[priority, lane], coming + spare)
            while spare > 0 and wanted > coming and able[-1].claim.priority >= priority:
                self._revoke(able.pop())
                spare, coming, leaving = spare - 1, coming + 1, leaving + 1
            coming = max(0, coming - wanted)
        return leaving

    def _wanted(self, line: _Line, most: int) -> int:
        """How many places those in line would take if there were any; not counted beyond `most`."""
        wanted: Counter[ModeLoad] = Counter()
        for claim in line.claims:
            if wanted.total() >= most:
                break
            mode = claim.share.mode
            wanted[mode] = int(min(mode.startable, wanted[mode] + self._room(claim, line.lane)))
        return min(wanted.total(), most)

    def _even_out(self, line: _Line) -> None:
        """Takes one place from who holds most, if the next in line holds at least two fewer.

        A mode that is full is evened out within itself.
        """
        claim = next(line.firsts(), None)
        if claim is None:
            return
        mode = claim.share.mode
        rivals = {
            share
            for share in self._shares.values()
            if (share.mode is mode if mode.is_full else share.mode.thinks == mode.thinks)
            and _lead(share, share.widest, claim) >= 2
        }
        able = [
            place
            for place in (self._all_running() if rivals else ())
            if place.claim.share in rivals
            and place.can_set_back
            and (place.claim.priority, place.lane) >= (line.priority, line.lane)  # else it would be the next again
            and _lead(place.claim.share, place.claim.held, claim) >= 2
        ]
        if able:
            self._revoke(max(able, key=lambda place: _rank(place, claim)))


def _rank(place: Place, claim: Claim) -> tuple[int, ...]:
    """Of those ahead of `claim`, the place with the highest is taken."""
    held = place.claim.held
    return _lead(place.claim.share, held, claim), held, place.lane, place.claim.arrived


def _lead(share: Share, held: int, claim: Claim) -> int:
    """By how many places a request of `share` that holds so many is ahead of `claim`: within a client by the request's,
    else by the client's.
    """
    return held - claim.held if share is claim.share else share.held - claim.share.held
