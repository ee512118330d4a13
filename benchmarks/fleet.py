"""What routing gains a fleet of engines: a simulation that runs the server's own router, `python -m benchmarks.fleet`.

No engine runs. An engine is a rule of how long a step takes; clients are conversations of several turns, some of which
think. The router is `server.routing`, unchanged, beside others that people use. Steps are assumed, not measured: the
figures say which way of routing is better, and not how fast a machine is. A heap of events is all that this needs.
"""

import argparse
import json
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from heapq import heappop, heappush
from itertools import count
from math import log
from pathlib import Path
from random import Random
from typing import Protocol

from benchmarks.load.statistics import percentile
from benchmarks.result_text import result_text
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
    drawn: int = 0
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


class InTurn:
    """One after the other."""

    def __init__(self, replicas: int, _engine: Engine) -> None:
        self._replicas = replicas
        self._turn = count()

    def begin(self, _request: Request) -> int:
        """The next."""
        return next(self._turn) % self._replicas

    def drew(self, _request: Request, _tokens: int) -> None:
        """Nothing to note."""

    def end(self, _request: Request) -> None:
        """Nothing to note."""


class Hashed(InTurn):
    """A conversation stays where it began."""

    def begin(self, request: Request) -> int:
        """By its number."""
        return request.conversation % self._replicas


class Fewest(InTurn):
    """To the one with the fewest requests."""

    def __init__(self, replicas: int, engine: Engine) -> None:
        super().__init__(replicas, engine)
        self._requests = [0] * replicas

    def begin(self, _request: Request) -> int:
        """Equals take turns."""
        start = next(self._turn)
        chosen = min(range(self._replicas), key=lambda one: (self._requests[one], (one - start) % self._replicas))
        self._requests[chosen] += 1
        return chosen

    def end(self, request: Request) -> None:
        """One fewer."""
        self._requests[request.replica] -= 1


POLICIES: dict[str, Callable[[int, Engine], Policy]] = {
    "twogear": Own,
    "twogear, modes unknown": lambda replicas, engine: Own(replicas, engine, knows_modes=False),
    "in turn": InTurn,
    "fewest requests": Fewest,
    "hash of the conversation": Hashed,
}


@dataclass(eq=False)
class Replica:
    """An engine: what waits, what runs, and which conversations' pages it has."""

    engine: Engine
    waiting: deque[Request] = field(default_factory=deque)
    running: list[Request] = field(default_factory=list)
    cached: OrderedDict[int, int] = field(default_factory=OrderedDict)
    tokens_cached: int = 0
    is_busy: bool = False

    def step(self) -> tuple[float, int, list[Request]]:
        """Takes in what has a place; seconds of the next step or steps, how many they are, and who draws in them."""
        while self.waiting and len(self.running) < self.engine.places:
            request = self.waiting.popleft()
            request.known = min(self.cached.get(request.conversation, 0), request.prompt - 1)
            request.unread = request.prompt - request.known
            self.running.append(request)
        read = self._read()
        drawing = [one for one in self.running if not one.unread]
        is_alone = not read and not any(one.unread for one in self.running)
        least = min((one.length - one.drawn for one in drawing), default=1)
        steps = max(1, min(self.engine.at_once, least)) if is_alone else 1
        return steps * (self.engine.step + self.engine.row * len(drawing)) + self.engine.read * read, steps, drawing

    def _read(self) -> int:
        left = self.engine.chunk
        for request in self.running:
            part = min(left, request.unread)
            request.unread -= part
            left -= part
        return self.engine.chunk - left

    def finish(self, request: Request) -> None:
        """Its place is free, its pages stay as long as there is room."""
        self.running.remove(request)
        self.tokens_cached -= self.cached.pop(request.conversation, 0)
        self.cached[request.conversation] = request.prompt + request.length
        self.tokens_cached += request.prompt + request.length
        while self.tokens_cached > self.engine.cache:
            _, tokens = self.cached.popitem(last=False)
            self.tokens_cached -= tokens


@dataclass(frozen=True)
class Figures:
    """What came of it. Seconds; `cached`: the share of later turns' prompts that was found; tokens drawn a second."""

    policy: str
    replicas: int
    requests: int
    first_direct_p50: float
    first_direct_p95: float
    first_thinker_p95: float
    direct_p95: float
    thinker_p95: float
    cached: float
    tokens_per_second: float


class Simulation:
    """Clients, a policy, and as many replicas. The same seed gives every policy the same conversations."""

    def __init__(self, replicas: int, engine: Engine, clients: Clients, policy: Policy, seed: int = 1) -> None:
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
        clients, rng = self._clients, Random(f"{self._seed} {number} {turn}")
        thinks = rng.random() < clients.thinkers
        more = _around(clients.later_prompt if turn else clients.first_prompt, rng)
        length = _around(clients.answer, rng) + (_around(clients.thought, rng) if thinks else 0)
        kind = "reasoning" if thinks else "standard"
        return Request(f"{number}-{turn}", number, turn, kind, before + more, length, self._now)

    def _arrive(self, request: Request) -> None:
        request.replica = self.policy.begin(request)
        replica = self._replicas[request.replica]
        replica.waiting.append(request)
        if not replica.is_busy:
            self._step(replica)

    def _step(self, replica: Replica) -> None:
        seconds, steps, drawing = replica.step()
        replica.is_busy = bool(replica.running)
        if replica.is_busy:
            self._at(self._now + seconds, lambda: self._stepped(replica, steps, drawing))

    def _stepped(self, replica: Replica, steps: int, drawing: Sequence[Request]) -> None:
        for request in drawing:
            request.first = request.first or self._now
            request.drawn += steps
            self.policy.drew(request, steps)
            if request.drawn >= request.length:
                self._end(replica, request)
        self._step(replica)

    def _end(self, replica: Replica, request: Request) -> None:
        request.ended = self._now
        replica.finish(request)
        self.policy.end(request)
        self.done.append(request)
        if request.turn + 1 < self._clients.turns:
            pause = Random(f"{self._seed} pause {request.id}").expovariate(1 / self._clients.pause)
            said = request.prompt + request.length
            self._at(self._now + pause, self._turn(request.conversation, request.turn + 1, said))


def _around(median: int, rng: Random) -> int:
    """Log-normal: some are many times as long as most."""
    return max(1, min(20_000, round(rng.lognormvariate(log(median), 0.7))))


def figures(policy: str, replicas: int, done: Sequence[Request]) -> Figures:
    """Of all requests."""
    of = {kind: [one for one in done if one.kind == kind] for kind in ("standard", "reasoning")}
    firsts = {kind: [one.first - one.arrived for one in some] for kind, some in of.items()}
    wholes = {kind: [one.ended - one.arrived for one in some] for kind, some in of.items()}
    later = [one for one in done if one.turn]
    return Figures(
        policy,
        replicas,
        len(done),
        percentile(firsts["standard"], 0.5),
        percentile(firsts["standard"], 0.95),
        percentile(firsts["reasoning"], 0.95),
        percentile(wholes["standard"], 0.95),
        percentile(wholes["reasoning"], 0.95),
        sum(one.known for one in later) / max(1, sum(one.prompt for one in later)),
        sum(one.length for one in done) / max(one.ended for one in done),
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", type=int, nargs="+", default=[2, 10, 50])
    parser.add_argument("--rate", type=float, default=0.25, help="conversations that begin a second, for each replica")
    parser.add_argument("--conversations", type=int, default=100, help="for each replica")
    parser.add_argument("--places", type=int, default=Engine.places, help="of each engine")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="a file for the result")
    args = parser.parse_args()
    engine, told = Engine(places=args.places), []
    for replicas in args.replicas:
        clients = Clients(args.conversations * replicas, args.rate * replicas)
        for name, policy in POLICIES.items():
            done = Simulation(replicas, engine, clients, policy(replicas, engine), args.seed).run()
            told.append(asdict(figures(name, replicas, done)))
            print(json.dumps(told[-1]), flush=True)
    if args.json is not None:
        options = f"--rate {args.rate} --conversations {args.conversations} --places {args.places} --seed {args.seed}"
        options += f" --replicas {' '.join(map(str, args.replicas))}"
        result = {
            "what": "fleet",
            "simulated": True,
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "command": f"python -m benchmarks.fleet {options}",
            "engine": asdict(engine),
            "clients_a_replica": asdict(Clients(args.conversations, args.rate)),
            "figures": told,
        }
        args.json.write_text(result_text(result))


if __name__ == "__main__":
    main()
