"""What routing gains a fleet of engines: a simulation that runs the server's own router and admission,
`python -m benchmarks.fleet`.

The router is `server.routing`, unchanged, beside others that people use; who has a place is `server.core.scheduler`'s
with all of them (`server.commands.fleet.simulation`). Steps are assumed, not measured: the figures say which way of
routing is better, and not how fast a machine is. Only `decision_us` and `seconds` are measured: processor time of this
machine for one choice, and for the simulation.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from statistics import fmean

from benchmarks.load.statistics import percentile
from benchmarks.result_text import result_text
from server.commands.fleet.engine import Engine, Request
from server.commands.fleet.simulation import Clients, Own, Policy, Simulation


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


class Timed:
    """A policy, and the processor time that its choices took, in seconds."""

    def __init__(self, policy: Policy) -> None:
        self.seconds, self.choices = 0.0, 0
        self.drew, self.end = policy.drew, policy.end
        self._begin = policy.begin

    def begin(self, request: Request) -> int:
        """The policy's choice."""
        before = time.thread_time()
        chosen = self._begin(request)
        self.seconds += time.thread_time() - before
        self.choices += 1
        return chosen


@dataclass(frozen=True)
class Figures:
    """What came of it. Seconds; `cached`: the share of later turns' prompts that was found; tokens drawn a second.

    `whole_mean`: of all requests. `set_back`: how often a thinker was, on average.
    """

    policy: str
    replicas: int
    requests: int
    first_direct_p50: float
    first_direct_p95: float
    first_thinker_p95: float
    direct_p95: float
    thinker_p95: float
    whole_mean: float
    set_back: float
    cached: float
    tokens_per_second: float


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
        fmean(one.ended - one.arrived for one in done),
        fmean(one.set_back for one in of["reasoning"]),
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
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES), help="ways of routing")
    parser.add_argument("--servers", action="store_true", help="each engine has a server of its own, as on Ray")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="a file for the result")
    args = parser.parse_args()
    engine, told = Engine(places=args.places), []
    for replicas in args.replicas:
        clients = Clients(args.conversations * replicas, args.rate * replicas)
        for name in args.policies:
            policy, before = Timed(POLICIES[name](replicas, engine)), time.process_time()
            done = Simulation(replicas, engine, clients, policy, args.seed, servers=args.servers).run()
            costs = {
                "decision_us": policy.seconds / policy.choices * 1e6,
                "seconds": time.process_time() - before,
            }
            told.append(asdict(figures(name, replicas, done)) | costs)
            print(json.dumps(told[-1]), flush=True)
    if args.json is not None:
        options = f"--rate {args.rate} --conversations {args.conversations} --places {args.places} --seed {args.seed}"
        options += f" --replicas {' '.join(map(str, args.replicas))}"
        if args.servers:
            options += " --servers"
        if args.policies != list(POLICIES):
            options += " --policies " + " ".join(f"'{name}'" for name in args.policies)
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
