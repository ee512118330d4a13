"""Which of several engines a generation goes to: where its pages are, unless another has so much less to do.

Pure bookkeeping: requests in, a replica out, what they draw observed. It knows neither sockets nor clocks, so that any
front of several engines can route by it, and a simulation too.

- **Load** is the sum of the tokens that are yet to come, not the number of requests: a thinker counts as the hundreds
  of tokens that thinkers draw. How many is the moving mean of what generations of that `kind` drew, and at most what
  the request may draw. One that has drawn more than the mean still counts as TAIL of it.
- **Affinity** is the longest part of a prompt, in blocks of BLOCK tokens, that a replica has read before. The kind is
  no part of it: modes share prompts.
- **The choice** is the least delay, in steps, of all together. What has to be read keeps up the generation itself and
  all that run there, or as many as run in the others on average: who has few now will not stay so empty. While they
  draw side by side, each makes the other's steps a little longer. Where all places are taken, it waits for one. So a
  conversation goes back to its pages until these cost more than reading anew where there is less to do. Equals take
  turns.
"""

import math
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

BLOCK = 64
"""Tokens. Coarser than a page: a prompt of 100,000 tokens is looked up in a millisecond."""
MOST_BLOCKS = 65_536
"""Of one replica that are remembered: four million tokens."""
READ_STEPS = 0.01
"""What reading a token costs, in steps: engines read hundreds of tokens in the time of a step that draws."""
ROW_STEPS = 0.005
"""By how much of a step one more generation lengthens it. Twice or half of it changes little (`benchmarks.fleet`)."""
TAIL = 0.25
FIRST_GUESS = 200.0
"""Tokens of a generation of a kind of which none has ended yet."""
NEWEST = 0.05
"""The weight of the last generation in a kind's mean."""


@dataclass(eq=False)
class _Running:
    replica: int
    kind: str
    expected: float
    left: float  # tokens that are yet to come
    drawn: int = 0


@dataclass(eq=False)
class _Replica:
    load: float = 0.0
    running: int = 0
    turn: int = 0  # when it was last chosen
    blocks: OrderedDict[int, None] = field(default_factory=OrderedDict)


class Router:
    """Routes between `replicas` engines, known by their numbers from 0."""

    def __init__(self, replicas: int) -> None:
        self._replicas = [_Replica() for _ in range(replicas)]
        self._running: dict[str, _Running] = {}
        self._means: dict[str, float] = {}
        self._turn = 0

    def begin(
        self,
        request_id: str,
        prompt_ids: Sequence[int],
        candidates: Sequence[int],
        *,
        kind: str = "",
        limit: int,
        places: int,
        salt: Hashable = None,
    ) -> int:
        """The replica for a generation, one of `candidates`, of which each has `places`; it runs there from now on.

        `limit`: the most tokens that it may draw. `salt`: pages are shared only by generations of the same.
        """
        blocks = list(_blocks(prompt_ids, salt))
        expected = min(self._mean(kind), limit)
        chosen = self._cheapest(candidates, blocks, len(prompt_ids), places, expected)
        self._turn += 1
        replica = self._replicas[chosen]
        replica.turn = self._turn
        replica.running += 1
        self._remember(replica, blocks)
        self._running[request_id] = _Running(chosen, kind, expected, left=expected)
        replica.load += expected
        return chosen

    def drew(self, request_id: str, tokens: int) -> None:
        """A generation has drawn so many more tokens; unknown ones are ignored."""
        running = self._running.get(request_id)
        if running is not None:
            running.drawn += tokens
            left = max(running.expected - running.drawn, TAIL * running.expected)
            self._replicas[running.replica].load += left - running.left
            running.left = left

    def end(self, request_id: str, *, is_whole: bool) -> None:
        """A generation is over. Of one that was broken off, `is_whole` being false, no length is learnt."""
        running = self._running.pop(request_id, None)
        if running is None:
            return
        replica = self._replicas[running.replica]
        replica.running -= 1
        replica.load = replica.load - running.left if replica.running else 0.0
        if is_whole:
            mean = self._means.get(running.kind, float(running.drawn))
            self._means[running.kind] = mean + NEWEST * (running.drawn - mean)

    def replica_of(self, request_id: str) -> int | None:
        """Where a generation runs; None where it does not."""
        running = self._running.get(request_id)
        return None if running is None else running.replica

    def forget(self, replica: int) -> None:
        """A replica has lost its pages."""
        self._replicas[replica].blocks.clear()

    def load(self, replica: int) -> float:
        """The tokens that are yet to come there."""
        return self._replicas[replica].load

    def _mean(self, kind: str) -> float:
        return self._means.get(kind, FIRST_GUESS)

    def _cheapest(
        self, candidates: Sequence[int], blocks: Sequence[int], tokens: int, places: int, expected: float
    ) -> int:
        """The least delay; of equals, the one that was chosen longest ago.

        One that has read nothing of the prompt, runs more than the best so far and has more to do costs more.
        """
        first = blocks[0] if blocks else None
        mean = len(self._running) / len(candidates)
        chosen, best, least = candidates[0], self._replicas[candidates[0]], math.inf
        for one in candidates:
            replica = self._replicas[one]
            if replica.running > best.running and replica.load > best.load and first not in replica.blocks:
                continue
            cost = _cost(replica, blocks, tokens, places, expected, mean=mean)
            if cost < least or (cost == least and replica.turn < best.turn):
                chosen, best, least = one, replica, cost
        return chosen

    def _remember(self, replica: _Replica, blocks: Sequence[int]) -> None:
        for block in reversed(blocks):  # the first ones are the last to be forgotten
            replica.blocks[block] = None
            replica.blocks.move_to_end(block)
        while len(replica.blocks) > MOST_BLOCKS:
            replica.blocks.popitem(last=False)


def _cost(replica: _Replica, blocks: Sequence[int], tokens: int, places: int, expected: float, *, mean: float) -> float:
    """What a generation there delays, in steps; `mean` generations run in each replica."""
    known = 0
    for block in blocks:
        if block not in replica.blocks:
            break
        known += 1
    others, load = replica.running, replica.load
    cost = (max(others, mean) + 1) * READ_STEPS * (tokens - known * BLOCK) + 2 * ROW_STEPS * min(
        expected * others, load
    )
    return cost if others < places else cost + (others + 1 - places) * load / others / places


def _blocks(prompt_ids: Sequence[int], salt: Hashable) -> Iterator[int]:
    """One number for each whole block, which stands for all of the prompt up to its end."""
    number = hash(salt)
    for start in range(0, len(prompt_ids) - BLOCK + 1, BLOCK):
        number = hash((number, *prompt_ids[start : start + BLOCK]))
        yield number
