"""A fleet of engines, simulated: the server's own router over engines that are a rule of how long a step takes.

No engine runs. Clients are conversations of several turns, some of which think. The router is `server.routing`,
unchanged. Who waits is taken in the order of arrival: the server's shares between modes and clients are not in it.
A heap of events is all that this needs.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from math import log
from random import Random
from typing import Protocol

from server.routing import Router

CONTEXT = 131_072


@dataclass(frozen=True)
class Engine:
    """How long things take. A step draws a token for each of the `places` that are taken, and reads up to `chunk` more.

    `step`, `row` and `read` in seconds: of a step, for each token that it draws, and for each that it reads. `cache`:
    tokens whose pages are kept. `at_once`: steps that are simulated together, where nothing is to be read.
    """

    step: float = 0.02
    row: float = 0.0002
    read: float = 0.0001
    places: int = 64
    chunk: int = 2048
    cache: int = 500_000
    at_once: int = 8


class Workload(Protocol):
    """Conversations that begin `rate` times a second; each has up to `turns`, with so many seconds of `pause`."""

    @property
    def conversations(self) -> int:
        """How many in all."""

    @property
    def rate(self) -> float:
        """How many begin in a second."""

    @property
    def turns(self) -> int:
        """Of each."""

    @property
    def pause(self) -> float:
        """Mean seconds from an answer to the next turn."""

    def draw(self, conversation: int, turn: int, rng: Random) -> tuple[str, int, int]:
        """A turn's kind, the tokens that it adds to the prompt, and those that are generated."""


@dataclass(frozen=True)
class Clients:
    """Conversations that begin `rate` times a second in all. Lengths in tokens, their medians; `pause` in seconds."""

    conversations: int
    rate: float
    turns: int = 6
    thinkers: float = 0.5
    first_prompt: int = 1500
    later_prompt: int = 200
    thought: int = 1500
    answer: int = 150
    pause: float = 20.0

    def draw(self, _conversation: int, turn: int, rng: Random) -> tuple[str, int, int]:
        """Whether a turn thinks, what it adds to the prompt, and how long the generation is."""
        thinks = rng.random() < self.thinkers
        more = around(self.later_prompt if turn else self.first_prompt, rng)
        length = around(self.answer, rng) + (around(self.thought, rng) if thinks else 0)
        return ("reasoning" if thinks else "standard"), more, length


@dataclass(eq=False)
class Request:
    """A turn of a conversation. `known`: tokens of its prompt that the replica had; times in seconds."""

    id: str
    conversation: int
    turn: int
    kind: str
    prompt: int
    length: int
    arrived: float
    replica: int = -1
    known: int = 0
    unread: int = 0
    first: float = 0.0
    ended: float = 0.0


class Policy(Protocol):
    """Says where a request goes, and is told what it draws."""

    def begin(self, request: Request) -> int:
        """The number of the replica."""

    def drew(self, request: Request, tokens: int) -> None:
        """It has drawn more."""

    def end(self, request: Request) -> None:
        """It is over."""


class Own:
    """The server's router. Without `knows_modes` all requests are of one kind."""

    def __init__(self, replicas: int, engine: Engine, *, knows_modes: bool = True) -> None:
        self.router = Router(replicas)
        self._candidates = range(replicas)
        self._places = engine.places
        self._knows_modes = knows_modes

    def begin(self, request: Request) -> int:
        """By load and pages. The ids of a conversation are its own, and the same in each turn."""
        start = request.conversation * CONTEXT
        return self.router.begin(
            request.id,
            range(start, start + request.prompt),
            self._candidates,
            kind=request.kind if self._knows_modes else "",
            limit=CONTEXT,
            places=self._places,
        )

    def drew(self, request: Request, tokens: int) -> None:
        """Tells the router."""
        self.router.drew(request.id, tokens)

    def end(self, request: Request) -> None:
        """Tells the router."""
        self.router.end(request.id, is_whole=True)


@dataclass(eq=False)
class Replica:
    """An engine: what waits, what is read, what draws, and which conversations' pages it has.

    `drawn`: the steps that have drawn. `ends`: those with which the requests that draw end, the next one first.
    """

    engine: Engine
    waiting: deque[Request] = field(default_factory=deque)
    reading: list[Request] = field(default_factory=list)
    drawing: dict[Request, None] = field(default_factory=dict)
    drawn: int = 0
    ends: list[tuple[int, int, Request]] = field(default_factory=list)
    cached: OrderedDict[int, int] = field(default_factory=OrderedDict)
    tokens_cached: int = 0
    is_busy: bool = False
    _order: Iterator[int] = field(default_factory=count)

    def step(self) -> tuple[float, int, list[Request]]:
        """Takes in what has a place; seconds of the next step or steps, how many they are, and who begins to draw."""
        while self.waiting and len(self.reading) + len(self.drawing) < self.engine.places:
            request = self.waiting.popleft()
            request.known = min(self.cached.get(request.conversation, 0), request.prompt - 1)
            request.unread = request.prompt - request.known
            self.reading.append(request)
        read = self._read() if self.reading else 0
        begin = [one for one in self.reading if not one.unread] if read else []
        for request in begin:
            self.reading.remove(request)
            self.drawing[request] = None
            heappush(self.ends, (self.drawn + request.length, next(self._order), request))
        steps = 1
        if not read and self.ends:
            steps = max(1, min(self.engine.at_once, self.ends[0][0] - self.drawn))
        self.drawn += steps
        seconds = steps * (self.engine.step + self.engine.row * len(self.drawing)) + self.engine.read * read
        return seconds, steps, begin

    def ended(self) -> list[Request]:
        """Those that have drawn all, after a step. Their places are free, their pages stay as long as there is room."""
        done = []
        while self.ends and self.ends[0][0] <= self.drawn:
            *_, request = heappop(self.ends)
            del self.drawing[request]
            self._keep(request)
            done.append(request)
        return done

    def _read(self) -> int:
        left = self.engine.chunk
        for request in self.reading:
            part = min(left, request.unread)
            request.unread -= part
            left -= part
        return self.engine.chunk - left

    def _keep(self, request: Request) -> None:
        self.tokens_cached -= self.cached.pop(request.conversation, 0)
        self.cached[request.conversation] = request.prompt + request.length
        self.tokens_cached += request.prompt + request.length
        while self.tokens_cached > self.engine.cache:
            _, tokens = self.cached.popitem(last=False)
            self.tokens_cached -= tokens


class Simulation:
    """Clients, a policy, and as many replicas. The same seed gives every policy the same conversations."""

    def __init__(self, replicas: int, engine: Engine, clients: Workload, policy: Policy, seed: int = 1) -> None:
        self.policy = policy
        self.done: list[Request] = []
        self._replicas = [Replica(engine) for _ in range(replicas)]
        self._clients = clients
        self._seed = seed
        self._order = count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._now = 0.0

    def run(self) -> list[Request]:
        """All requests, in the order in which they ended."""
        rng, at = Random(self._seed), 0.0
        for number in range(self._clients.conversations):
            at += rng.expovariate(self._clients.rate)
            self._at(at, self._turn(number, 0, 0))
        while self._events:
            self._now, _, happens = heappop(self._events)
            happens()
        return self.done

    def _at(self, time: float, happens: Callable[[], None]) -> None:
        heappush(self._events, (time, next(self._order), happens))

    def _turn(self, number: int, turn: int, before: int) -> Callable[[], None]:
        return lambda: self._arrive(self._request(number, turn, before))

    def _request(self, number: int, turn: int, before: int) -> Request:
        """What a turn is depends on its numbers alone. `before`: tokens of the turns before it."""
        kind, more, length = self._clients.draw(number, turn, Random(f"{self._seed} {number} {turn}"))
        return Request(f"{number}-{turn}", number, turn, kind, before + more, length, self._now)

    def _arrive(self, request: Request) -> None:
        request.replica = self.policy.begin(request)
        replica = self._replicas[request.replica]
        replica.waiting.append(request)
        if not replica.is_busy:
            self._step(replica)

    def _step(self, replica: Replica) -> None:
        seconds, steps, begin = replica.step()
        replica.is_busy = bool(replica.reading or replica.drawing)
        if replica.is_busy:
            self._at(self._now + seconds, lambda: self._stepped(replica, steps, begin))

    def _stepped(self, replica: Replica, steps: int, begin: Sequence[Request]) -> None:
        for request in begin:
            request.first = self._now
        drew = self.policy.drew
        for request in replica.drawing:
            drew(request, steps)
        for request in replica.ended():
            self._end(request)
        self._step(replica)

    def _end(self, request: Request) -> None:
        request.ended = self._now
        self.policy.end(request)
        self.done.append(request)
        if request.turn + 1 < self._clients.turns:
            pause = Random(f"{self._seed} pause {request.id}").expovariate(1 / self._clients.pause)
            said = request.prompt + request.length
            self._at(self._now + pause, self._turn(request.conversation, request.turn + 1, said))


def around(median: int, rng: Random) -> int:
    """Log-normal: some are many times as long as most."""
    return max(1, min(20_000, round(rng.lognormvariate(log(median), 0.7))))
