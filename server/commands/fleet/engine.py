"""An engine as a rule of how long its steps take, on an event loop whose clock is simulated."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count

from server.core.scheduler import Place, Scheduler

_NEEDS_TO_KNOW = -(1 << 60)
"""Looks of a place's reader (`server.core.absent_readers`): it is told at once that its place is wanted, and is never
taken for one that stays away."""


@dataclass(frozen=True)
class Engine:
    """How long things take. A step draws a token for each of the `places` that are taken, and reads up to `chunk` more.

    `step`, `row` and `read` in seconds: of a step, for each token that it draws, and for each that it reads; `reading`:
    more of a step that reads any. `latency`: seconds of a request that keep up no engine. `cache`: tokens whose pages
    are kept. `at_once`: steps that are simulated together, as long as nothing comes and nobody ends.
    """

    step: float = 0.02
    row: float = 0.0002
    read: float = 0.0001
    places: int = 64
    chunk: int = 2048
    cache: int = 500_000
    at_once: int = 8
    reading: float = 0.0
    latency: float = 0.0


@dataclass(eq=False)
class Request:
    """A turn of a conversation: `thought` and `answer` are the tokens that it draws, `drawn` those that it has.

    `known`: tokens of its prompt that the replica had at first; `read`: those that were read, all generations together.
    `set_back`: how often it was. Times in seconds.
    """

    id: str
    conversation: int
    turn: int
    kind: str
    prompt: int
    thought: int
    answer: int
    arrived: float
    replica: int = -1
    known: int = 0
    read: int = 0
    drawn: int = 0
    set_back: int = 0
    first: float = 0.0
    ended: float = 0.0

    @property
    def length(self) -> int:
        """Tokens that it draws."""
        return self.thought + self.answer

    @property
    def thinks(self) -> bool:
        """Whether it does now."""
        return self.drawn < self.thought


@dataclass(eq=False)
class _Generation:
    """What a replica draws for a request in one place. `began`: the steps that had drawn before its first."""

    request: Request
    place: Place
    over: "asyncio.Future[None]"
    unread: int = 0
    began: int = 0


class Replica:
    """An engine, with what its server does for each token: places are those of `scheduler`, `drew` is told of all."""

    def __init__(self, engine: Engine, scheduler: Scheduler, drew: Callable[[Request, int], None]) -> None:
        self.scheduler = scheduler
        self._engine = engine
        self._drew = drew
        self._order = count()
        self._waiting: list[tuple[int, int, _Generation]] = []  # by lane, as vLLM takes them by priority
        self._reading: list[_Generation] = []
        self._beginning: list[_Generation] = []  # that draw their first token in the steps under way
        self._drawing: dict[_Generation, None] = {}
        self._drawn = 0  # steps that have drawn
        self._ends: list[tuple[int, int, _Generation]] = []  # with which of these steps
        self._thoughts: list[tuple[int, int, _Generation]] = []  # the same, where an answer follows
        self._pages: OrderedDict[int, int] = OrderedDict()  # tokens, by conversation
        self._tokens_kept = 0
        self._timer: asyncio.TimerHandle | None = None
        self._steps, self._seconds, self._since = 1, 0.0, 0.0  # under way, of each, and when the first began

    async def draw(self, request: Request, place: Place) -> None:
        """Draws what is left of a request, or until its place is wanted and the next token is there."""
        place.reader.looks, place.reader.stays_away = _NEEDS_TO_KNOW, self._cut_short
        generation = _Generation(request, place, asyncio.get_running_loop().create_future())
        heappush(self._waiting, (place.lane, next(self._order), generation))
        if self._timer is None:
            self._begin()
        else:
            self._cut_short()
        await generation.over

    def _cut_short(self) -> None:
        """The step under way is the last one before the engine looks up."""
        if self._timer is None or self._steps == 1:
            return
        loop = asyncio.get_running_loop()
        steps = int((loop.time() - self._since) / self._seconds) + 1
        if steps < self._steps:
            self._timer.cancel()
            self._steps = steps
            self._timer = loop.call_at(self._since + steps * self._seconds, self._end)

    def _begin(self) -> None:
        """Takes in what has room, and begins the next steps, if there is anything to do."""
        engine = self._engine
        while self._waiting and len(self._reading) + len(self._drawing) < engine.places:
            self._take_in(heappop(self._waiting)[-1])
        if self._reading:
            self._steps, seconds = 1, self._read()
        elif self._drawing:
            self._steps, seconds = max(1, min(engine.at_once, self._ends[0][0] - self._drawn)), 0.0
        else:
            return
        loop = asyncio.get_running_loop()
        self._seconds, self._since = seconds + engine.step + engine.row * len(self._drawing), loop.time()
        self._timer = loop.call_at(self._since + self._steps * self._seconds, self._end)

    def _end(self) -> None:
        """The steps under way are over."""
        self._timer = None
        steps, drew, count_tokens, wanted = self._steps, self._drew, self.scheduler.count, []
        self._drawn += steps
        for generation in self._drawing:
            count_tokens(generation.place, steps)
            drew(generation.request, steps)
            if generation.place.revoked:
                wanted.append(generation)
        self._note_first_tokens()
        self._note_answers()
        while self._ends and (self._ends[0][0] <= self._drawn or self._ends[0][-1].over.done()):
            self._leave(heappop(self._ends)[-1])
        for generation in wanted:
            self._leave(generation)
        while self._ends and self._ends[0][-1].over.done():
            heappop(self._ends)
        self._begin()

    def _take_in(self, generation: _Generation) -> None:
        request = generation.request
        tokens = request.prompt + request.drawn
        known = min(self._pages.get(request.conversation, 0), tokens - 1)
        if not request.drawn:
            request.known = known
        generation.unread = tokens - known
        request.read += tokens - known
        self._reading.append(generation)

    def _read(self) -> float:
        """Seconds of the next step's reading; who has read all begins to draw in it."""
        engine, left = self._engine, self._engine.chunk
        for generation in self._reading:
            part = min(left, generation.unread)
            generation.unread -= part
            left -= part
        self._beginning = [one for one in self._reading if not one.unread]
        self._reading = [one for one in self._reading if one.unread]
        for generation in self._beginning:
            request, generation.began = generation.request, self._drawn
            self._drawing[generation] = None
            rest = request.length - request.drawn
            heappush(self._ends, (self._drawn + rest, next(self._order), generation))
            if request.thinks and request.answer:
                thought = request.thought - request.drawn
                heappush(self._thoughts, (self._drawn + thought, next(self._order), generation))
        return engine.reading + engine.read * (engine.chunk - left)

    def _note_first_tokens(self) -> None:
        for generation in self._beginning:
            if not generation.request.drawn:
                generation.request.first = asyncio.get_running_loop().time()
        self._beginning = []

    def _note_answers(self) -> None:
        while self._thoughts and self._thoughts[0][0] <= self._drawn:
            generation = heappop(self._thoughts)[-1]
            if not generation.over.done():
                self.scheduler.answers(generation.place, can_set_back=True)

    def _leave(self, generation: _Generation) -> None:
        """It has drawn all, or its place is wanted. Its pages stay as long as there is room."""
        if generation.over.done():
            return
        request = generation.request
        del self._drawing[generation]
        request.drawn += self._drawn - generation.began
        self._tokens_kept -= self._pages.pop(request.conversation, 0)
        self._pages[request.conversation] = request.prompt + request.drawn
        self._tokens_kept += request.prompt + request.drawn
        while self._tokens_kept > self._engine.cache:
            _, tokens = self._pages.popitem(last=False)
            self._tokens_kept -= tokens
        generation.over.set_result(None)
