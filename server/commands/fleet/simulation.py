"""A fleet of engines, simulated: the server's own router and admission over engines that are a rule of how long a step
takes.

No engine runs. Clients are conversations of several turns, some of which think. Who goes where is `server.routing`'s,
who has a place, who waits and who is set back `server.core.scheduler`'s; both run unchanged, the second on an event
loop whose clock is simulated. Requests go through them as in `server.core.generate`. All are of one client. What the
server refuses beforehand (`server.core.intake`) is not in it: here all may wait.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from math import log
from random import Random
from typing import NamedTuple, Protocol

from server.commands.fleet.engine import Engine, Replica, Request
from server.commands.fleet.virtual_time import VirtualTimeLoop
from server.core.scheduler import ModeLoad, Place, Scheduler
from server.routing import Router

CONTEXT = 131_072


class Turn(NamedTuple):
    """Tokens: what it adds to the prompt, and what is drawn; `thought` is 0 in a kind that does not think."""

    kind: str
    prompt: int
    thought: int
    answer: int


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

    @property
    def kinds(self) -> Mapping[str, bool]:
        """Whether each kind thinks."""

    def draw(self, conversation: int, turn: int, rng: Random) -> Turn:
        """A turn of a conversation."""


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

    @property
    def kinds(self) -> Mapping[str, bool]:
        """The two modes that profiles have."""
        return {"standard": False, "reasoning": True}

    def draw(self, _conversation: int, turn: int, rng: Random) -> Turn:
        """Whether a turn thinks, what it adds to the prompt, and how long the generation is."""
        thinks = rng.random() < self.thinkers
        more = around(self.later_prompt if turn else self.first_prompt, rng)
        answer = around(self.answer, rng)
        return Turn("reasoning" if thinks else "standard", more, around(self.thought, rng) if thinks else 0, answer)


class Policy(Protocol):
    """Says where a request goes, and is told what it draws."""

    def begin(self, request: Request) -> int:
        """The number of the replica."""

    def drew(self, request: Request, tokens: int) -> None:
        """It has drawn more."""

    def end(self, request: Request) -> None:
        """It has drawn all, or was set back, and comes again."""


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
            range(start, start + request.prompt + request.drawn),
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
        self.router.end(request.id, is_whole=request.drawn == request.length)


class Simulation:
    """Clients, a policy, and as many replicas. The same seed gives every policy the same conversations.

    One front end gives out the places of all replicas, and routes what has one, as `--data-parallel-size` does. With
    `servers`, each replica is a server: a request is routed as it comes, and gets a place of that server's, as on Ray.
    """

    def __init__(
        self,
        replicas: int,
        engine: Engine,
        clients: Workload,
        policy: Policy,
        seed: int = 1,
        *,
        servers: bool = False,
    ) -> None:
        self.policy = policy
        self.done: list[Request] = []
        self._engine = engine
        self._clients = clients
        self._seed = seed
        self._servers = servers
        number, places = (replicas, engine.places) if servers else (1, engine.places * replicas)
        schedulers = [Scheduler(lambda: places, _modes(clients.kinds)) for _ in range(number)]
        self._replicas = [Replica(engine, schedulers[one % number], policy.drew) for one in range(replicas)]

    def run(self) -> list[Request]:
        """All requests, in the order in which they ended. Not to be called where an event loop runs."""
        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            runner.run(self._play())
        return self.done

    async def _play(self) -> None:
        rng, begins = Random(self._seed), 0.0
        async with asyncio.TaskGroup() as group:
            for number in range(self._clients.conversations):
                begins += rng.expovariate(self._clients.rate)
                group.create_task(self._converse(number, begins))

    async def _converse(self, number: int, begins: float) -> None:
        await asyncio.sleep(begins)
        said = 0
        for turn in range(self._clients.turns):
            if turn:
                pause = Random(f"{self._seed} pause {number}-{turn - 1}")
                await asyncio.sleep(pause.expovariate(1 / self._clients.pause))
            request = self._request(number, turn, said)
            await self._serve(request)
            said = request.prompt + request.length

    def _request(self, number: int, turn: int, before: int) -> Request:
        """What a turn is depends on its numbers alone. `before`: tokens of the turns before it."""
        kind, more, thought, answer = self._clients.draw(number, turn, Random(f"{self._seed} {number} {turn}"))
        return Request(f"{number}-{turn}", number, turn, kind, before + more, thought, answer, _now())

    async def _serve(self, request: Request) -> None:
        """As `server.core.generate` does: in a place, and where that is wanted, in another, from the tokens so far."""
        if self._engine.latency:
            await asyncio.sleep(self._engine.latency)
        if self._servers:
            request.replica = self.policy.begin(request)
        scheduler = self._replicas[request.replica if self._servers else 0].scheduler
        claim = scheduler.claim(request.kind, choices=1, prompt_tokens=request.prompt)
        while True:
            async with scheduler.place(claim, thinking=request.thinks, can_set_back=True) as place:
                if not place.revoked:
                    await self._generate(request, place)
            if request.drawn == request.length:
                break
            request.set_back += 1
        scheduler.close(claim)
        if self._servers:
            self.policy.end(request)
        request.ended = _now()
        self.done.append(request)

    async def _generate(self, request: Request, place: Place) -> None:
        if not self._servers:
            request.replica = self.policy.begin(request)
        await self._replicas[request.replica].draw(request, place)
        if not self._servers:
            self.policy.end(request)


def around(median: int, rng: Random) -> int:
    """Log-normal: some are many times as long as most."""
    return max(1, min(20_000, round(rng.lognormvariate(log(median), 0.7))))


def _modes(kinds: Mapping[str, bool]) -> dict[str, ModeLoad]:
    return {kind: ModeLoad(thinks) for kind, thinks in kinds.items()}


def _now() -> float:
    return asyncio.get_running_loop().time()
