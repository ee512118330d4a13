"""Which replica of a fleet a request goes to: the server's own router (`server.routing`), over replicas with names that
come and go.

A request that was sent to a replica has a ticket. By it, the replica tells what was drawn, and that it is over.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

from deploy.ray.asked import Asked
from server.routing import Router

MOST_REPLICAS = 1024
UNTOLD_SECONDS = 10.0
"""A replica tells of a request within a second. One that no replica tells of never arrived: its client has left."""


@dataclass(frozen=True)
class Told:
    """What a replica tells of a request. `tokens`: more that it has drawn. `over`: None while it runs, then whether its
    length is that of its kind.
    """

    tokens: int = 0
    over: bool | None = None


@dataclass(eq=False)
class _Replica:
    slot: int
    tickets: set[str] = field(default_factory=set)


class Fleet:
    """`places`: how many requests a replica runs at once."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._router = Router(MOST_REPLICAS)
        self._free = list(range(MOST_REPLICAS - 1, -1, -1))
        self._replicas: dict[str, _Replica] = {}
        self._untold: dict[str, tuple[float, str]] = {}  # by ticket: since when, and the replica
        self._numbers = count(1)
        self._mark = secrets.token_hex(4)  # a router that is started anew gives no ticket twice

    def choose(self, asked: Asked, names: Sequence[str], now: float) -> tuple[str, str]:
        """The name of the replica for a request, one of `names`, which are all that there are; and its ticket.

        `now` in seconds, of any clock.
        """
        self._keep(names)
        self._forget_untold(now)
        slots = {self._replicas[name].slot: name for name in names}
        ticket = f"{self._mark}-{next(self._numbers)}"
        slot = self._router.begin(
            ticket,
            asked.prompt,
            list(slots),
            kind=asked.kind,
            limit=asked.limit,
            places=self._places,
            salt=asked.salt,
        )
        self._replicas[slots[slot]].tickets.add(ticket)
        self._untold[ticket] = (now, slots[slot])
        return slots[slot], ticket

    def least(self, names: Sequence[str]) -> str:
        """The name of the replica with the fewest tokens to come, for what draws none."""
        self._keep(names)
        return min(names, key=lambda name: self._router.load(self._replicas[name].slot))

    def tell(self, told: dict[str, Told]) -> None:
        """What a replica tells, by ticket; unknown ones are ignored."""
        for ticket, one in told.items():
            self._untold.pop(ticket, None)
            self._router.drew(ticket, one.tokens)
            if one.over is not None:
                self._router.end(ticket, is_whole=one.over)
                for replica in self._replicas.values():
                    replica.tickets.discard(ticket)

    def loads(self) -> dict[str, float]:
        """The tokens that are yet to come, by replica."""
        return {name: self._router.load(replica.slot) for name, replica in self._replicas.items()}

    def _keep(self, names: Sequence[str]) -> None:
        """Those of `names` and no others; what ran on others is over."""
        for name in [name for name in self._replicas if name not in names]:
            gone = self._replicas.pop(name)
            for ticket in gone.tickets:
                self._router.end(ticket, is_whole=False)
                self._untold.pop(ticket, None)
            self._router.forget(gone.slot)
            self._free.append(gone.slot)
        for name in names:
            if name not in self._replicas:
                self._replicas[name] = _Replica(self._free.pop())

    def _forget_untold(self, now: float) -> None:
        while self._untold:
            ticket, (since, name) = next(iter(self._untold.items()))
            if now - since < UNTOLD_SECONDS:
                return
            del self._untold[ticket]
            self._router.end(ticket, is_whole=False)
            self._replicas[name].tickets.discard(ticket)
