"""Fits the simulated engine to a running server, and holds a simulation to it: `python -m benchmarks.fleet_fit URL`.

Step times are measured at several numbers of streams, reading at several lengths of prompts, on all engines of the
server at once, as they will run. What a step that reads costs beyond that is measured where it counts: short prompts
are read beside streams, and keep these up. What a lone prompt takes longer is a request's way, and keeps up no engine.
With `--check` the server gets requests of both kinds at random moments after each round, and the simulation, with the
fitted times and the lengths that were measured, the same: throughput and the 95th percentiles of both are compared. A
machine's speed changes, and requests wait the longer the nearer it is to its limit, so medians over rounds count. The
client shares the machine with the server. Run it where nothing else runs, and start the server with
`-- --max-num-seqs N`, the most of --streams: an engine has as many places in the simulation.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from datetime import UTC, datetime
from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import Any

import httpx
import uvloop

from benchmarks.load.accounting import Sample
from benchmarks.load.statistics import percentile
from benchmarks.load.workload import Prompts
from benchmarks.result_text import result_text
from benchmarks.short_beside_thinkers import Load
from server.access.keys import client_headers
from server.commands.fleet.engine import Engine, Request
from server.commands.fleet.simulation import Own, Simulation, Turn, around
from server.commands.fleet.sizing import work
from server.settings import EMBEDDED_MODEL

_AT_ONCE, _AT_ONCE_SECONDS = 32, 0.04  # multi-step decoding (docs/request.md)
_PROMPT = 32
_BESIDE, _BESIDE_PROMPTS, _BESIDE_WORDS = 8, 24, 200
"""Streams on each engine, and the prompts that are read beside them, one after the other."""
_KINDS = ((False, True), (True, False))
"""Which streams think, in turn; a single one does half of the times."""
_PRINTED = ("step", "row", "read", "reading", "latency", "places")
BOUND = 0.15
"""How far the simulation may be from what was measured."""


@dataclass(frozen=True)
class Points:
    """Of each replica (streams, seconds a step), (tokens, seconds); tokens of a prompt, and seconds by which it kept up
    those that draw beside it.
    """

    steps: list[tuple[float, float]]
    reads: list[tuple[float, float]]
    beside: tuple[float, float]


@dataclass(frozen=True)
class Fit:
    """An engine with the points that it was fitted to. `error`: the largest of a step's, relative."""

    engine: Engine
    replicas: int
    points: Points
    error: float


@dataclass(frozen=True)
class Found:
    """Of one run of the check: tokens a second, and 95th percentiles in seconds."""

    tokens_per_second: float
    first_p95: float
    whole_p95: float


def line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Least squares: where it begins, and its slope, which is not below zero."""
    slope, begin = statistics.linear_regression(*zip(*points, strict=True))
    return (begin, slope) if slope >= 0 else (statistics.fmean(y for _, y in points), 0.0)


def fitted(points: Points, replicas: int) -> Fit:
    """The engine of these points, with as many places as the most streams. Raises ValueError where a step would take no
    time.
    """
    step, row = line(points.steps)
    if step <= 0:
        steps = points.steps
        raise ValueError(f"the steps {steps} are on no line that begins above zero; measure where nothing else runs")
    alone, read = line(points.reads)
    tokens, seconds = points.beside
    reading = max(0.0, seconds - read * tokens - row)
    latency = max(0.0, alone - step - row - reading)
    at_once = max(1, min(_AT_ONCE, int(_AT_ONCE_SECONDS / (step + row))))
    error = max(abs(step + row * streams - seconds) / seconds for streams, seconds in points.steps)
    places = int(max(streams for streams, _ in points.steps))
    engine = Engine(step, row, read, places, at_once=at_once, reading=reading, latency=latency)
    return Fit(engine, replicas, points, error)


def middle(rounds: Sequence[Points]) -> Points:
    """The medians over rounds."""
    beside = [one.beside for one in rounds]
    return Points(
        [_median(steps) for steps in zip(*(one.steps for one in rounds), strict=True)],
        [_median(reads) for reads in zip(*(one.reads for one in rounds), strict=True)],
        _median(beside),
    )


def _median(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    first, second = map(statistics.median, zip(*points, strict=True))
    return first, second


async def measure(load: Load, replicas: int, streams: Sequence[int], lengths: Sequence[int], tokens: int) -> Points:
    """One round. `streams` are of each replica, half of which think: drawn tokens cost more than the likeliest. Raises
    ValueError where a request failed.
    """
    steps, reads = [], []
    await _all(load, replicas, _PROMPT, tokens)  # warms up
    for count in streams:
        found = [await _all(load, count * replicas, _PROMPT, tokens, kinds) for kinds in _KINDS]
        steps.append((float(count), statistics.fmean(statistics.median(map(_per_token, one)) for one in found)))
    for length in lengths:
        done = await _all(load, replicas, length, 1)
        prompt = statistics.fmean(one.prompt_tokens for one in done)
        reads.append((prompt, statistics.median(one.ended - one.started for one in done)))
    return Points(steps, reads, await _beside(load, replicas, 2 * tokens))


async def _beside(load: Load, replicas: int, tokens: int) -> tuple[float, float]:
    """A prompt's tokens, and by how many seconds it keeps up streams that draw `tokens` each."""

    async def read() -> list[Sample]:
        return [await load.ask(_BESIDE_WORDS, 1, thinks=False) for _ in range(_BESIDE_PROMPTS)]

    alone = await _all(load, _BESIDE * replicas, _PROMPT, tokens)
    streams, *readers = await asyncio.gather(
        _all(load, _BESIDE * replicas, _PROMPT, tokens), *(read() for _ in range(replicas))
    )
    begin, end = max(map(_first, streams)), min(one.ended for one in streams)
    prompts = _whole([one for some in readers for one in some])
    among = sum(_within(one, begin, end) for one in prompts) / replicas
    later = statistics.median(map(_per_token, streams)) - statistics.median(map(_per_token, alone))
    return statistics.fmean(one.prompt_tokens for one in prompts), later * (tokens - 1) / among if among else 0.0


def _within(sample: Sample, begin: float, end: float) -> float:
    """The share of its time."""
    return max(0.0, min(sample.ended, end) - max(sample.started, begin)) / (sample.ended - sample.started)


def _first(sample: Sample) -> float:
    """When its first token came, or its end where none was seen."""
    return sample.ended if sample.first is None else sample.first


def _per_token(sample: Sample) -> float:
    return (sample.ended - _first(sample)) / (sample.completion_tokens - 1)


async def _all(load: Load, count: int, words: int, tokens: int, thinks: Sequence[bool] = (False,)) -> list[Sample]:
    """Requests at once, which think or do not by turns."""
    kinds = islice(cycle(thinks), count)
    return _whole(await asyncio.gather(*(load.ask(words, tokens, thinks=kind) for kind in kinds)))


def _whole(done: Sequence[Sample]) -> list[Sample]:
    failed = [one.error for one in done if one.error is not None]
    if failed:
        raise ValueError(f"{len(failed)} of {len(done)} requests failed: {failed[0]}")
    return list(done)


@dataclass(frozen=True)
class Single:
    """Requests without a second turn, `conversations` of them, `rate` a second, half of which think."""

    conversations: int
    rate: float
    prompt: int = 200
    thought: int = 200
    answer: int = 40
    turns: int = 1
    pause: float = 1.0

    @property
    def kinds(self) -> Mapping[str, bool]:
        """The embedded model's modes."""
        return {"standard": False, "reasoning": True}

    def draw(self, conversation: int, _turn: int, _rng: Random) -> Turn:
        """All from its number."""
        rng = Random(f"check {conversation}")
        thinks = rng.random() < 0.5
        answer = around(self.answer, rng)
        thought = around(self.thought, rng) if thinks else 0
        return Turn("reasoning" if thinks else "standard", around(self.prompt, rng), thought, answer)


@dataclass(frozen=True)
class Measured:
    """The same requests with the tokens that the server counted."""

    asked: Single
    samples: list[Sample]

    @property
    def conversations(self) -> int:
        """How many."""
        return self.asked.conversations

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.asked.rate

    @property
    def turns(self) -> int:
        """One."""
        return 1

    @property
    def pause(self) -> float:
        """Of no account."""
        return self.asked.pause

    @property
    def kinds(self) -> Mapping[str, bool]:
        """Those that were asked."""
        return self.asked.kinds

    def draw(self, conversation: int, turn: int, rng: Random) -> Turn:
        """As it was measured; how much of it was thought is as it was asked."""
        sample, asked = self.samples[conversation], self.asked.draw(conversation, turn, rng)
        thought = min(asked.thought, sample.completion_tokens)
        return Turn(asked.kind, sample.prompt_tokens, thought, sample.completion_tokens - thought)


async def play(load: Load, asked: Single, seed: int) -> list[Sample]:
    """Asks a server at the moments at which the simulation has the requests arrive. Raises ValueError."""
    rng, started, tasks, at = Random(seed), time.perf_counter(), [], 0.0
    for number in range(asked.conversations):
        at += rng.expovariate(asked.rate)
        await asyncio.sleep(max(0.0, started + at - time.perf_counter()))
        kind, prompt, thought, answer = asked.draw(number, 0, rng)
        tasks.append(asyncio.create_task(load.ask(prompt, thought + answer, thinks=asked.kinds[kind])))
    return _whole(await asyncio.gather(*tasks))


def found_by_server(samples: Sequence[Sample]) -> Found:
    """What clients saw."""
    begin, end = min(one.started for one in samples), max(one.ended for one in samples)
    return Found(
        sum(one.completion_tokens for one in samples) / (end - begin),
        percentile([_first(one) - one.started for one in samples], 0.95),
        percentile([one.ended - one.started for one in samples], 0.95),
    )


def found_by_simulation(done: Sequence[Request]) -> Found:
    """What simulated clients saw."""
    begin, end = min(one.arrived for one in done), max(one.ended for one in done)
    return Found(
        sum(one.length for one in done) / (end - begin),
        percentile([one.first - one.arrived for one in done], 0.95),
        percentile([one.ended - one.arrived for one in done], 0.95),
    )


def compared(measured: Found, simulated: Found) -> dict[str, Any]:
    """Both, simulated to measured, and whether throughput and the whole requests' percentile are within the bound."""
    ratios = {name: getattr(simulated, name) / value for name, value in asdict(measured).items()}
    within = all(abs(ratios[name] - 1) <= BOUND for name in ("tokens_per_second", "whole_p95"))
    return {"measured": asdict(measured), "simulated": asdict(simulated), "ratios": ratios, "is_within_bound": within}


def asked_of(found: Fit, requests: int, share: float) -> Single:
    """So many requests that take `share` of what the engines can do, by the fit."""
    kinds, engine = Single(requests, 1.0), found.engine
    drawn = [kinds.draw(number, 0, Random(0)) for number in range(requests)]
    seconds = statistics.fmean(work(engine, one.prompt, one.thought + one.answer) for one in drawn) + engine.reading
    return Single(requests, share * found.replicas / seconds)


def check(found: Fit, asked: Single, plays: Sequence[Sequence[Sample]], seed: int) -> dict[str, Any]:
    """Simulates the requests that a server was asked, each time that it was, and compares the medians."""
    simulated = [
        found_by_simulation(
            Simulation(
                found.replicas, found.engine, Measured(asked, list(samples)), Own(found.replicas, found.engine), seed
            ).run()
        )
        for samples in plays
    ]
    measured = [found_by_server(samples) for samples in plays]
    return {
        "requests": asdict(asked),
        **compared(_found(measured), _found(simulated)),
        "rounds": [[asdict(one), asdict(other)] for one, other in zip(measured, simulated, strict=True)],
    }


def _found(rounds: Sequence[Found]) -> Found:
    return Found(*map(statistics.median, zip(*map(astuple, rounds), strict=True)))


def replicas_of(metrics: str) -> int:
    """How many engines a server has, by its metrics; 1 where these do not tell."""
    return max(1, sum(one.startswith("twogear_replica_ready{") for one in metrics.splitlines()))


def main() -> None:
    """Measures, prints the engine as a fleet's file has it, and writes the result; 1 where the check is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="of a running server")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 16, 32], help="on each engine")
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 1024], help="of prompts, in tokens")
    parser.add_argument("--tokens", type=int, default=256, help="that each stream draws")
    parser.add_argument("--rounds", type=int, default=5, help="of all measurements, whose medians count")
    parser.add_argument("--check", action="store_true", help="plays requests in each round, and simulates them")
    parser.add_argument("--requests", type=int, default=400, help="of the check")
    parser.add_argument("--share", type=float, default=0.6, help="of the engines' work, by the fit, that these take")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the result goes")
    args = parser.parse_args()
    result = measured(args)
    engine = result["engine"]
    print("\n[[engines]]", *(f"{key} = {engine[key]:.6g}" for key in _PRINTED), sep="\n")
    if args.json is not None:
        args.json.write_text(result_text(result))
    if result["error"] > BOUND:
        print(f"a step is up to {result['error']:.0%} off this line: measure where nothing else runs")
    if args.check:
        print(json.dumps(result["check"]))
        raise SystemExit(0 if result["check"]["is_within_bound"] else 1)


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """The result of what the command line asks for."""
    url = args.url.rstrip("/")
    model = httpx.get(f"{url}/v1/models", headers=client_headers(), timeout=10).raise_for_status().json()["data"][0]
    replicas = replicas_of(httpx.get(f"{url}/metrics", headers=client_headers(), timeout=10).raise_for_status().text)
    load = Load(url, model["id"], Prompts(EMBEDDED_MODEL))
    options = f"--streams {' '.join(map(str, args.streams))} --lengths {' '.join(map(str, args.lengths))}"
    options += f" --tokens {args.tokens} --rounds {args.rounds}"
    options += f" --check --requests {args.requests}" if args.check else ""
    result: dict[str, Any] = {
        "what": "fleet_fit",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "command": f"python -m benchmarks.fleet_fit URL {options} --share {args.share} --seed {args.seed}",
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": len(os.sched_getaffinity(0))},
    }
    rounds: list[Points] = []
    plays: list[list[Sample]] = []
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for number in range(args.rounds):
            rounds.append(runner.run(measure(load, replicas, args.streams, args.lengths, args.tokens)))
            print(f"round {number + 1}: {rounds[-1]}", flush=True)
            if args.check and not plays:
                asked = asked_of(fitted(rounds[0], replicas), args.requests, args.share)
                print(f"{asked.conversations} requests, {asked.rate:.2f} a second", flush=True)
            if args.check:
                plays.append(runner.run(play(load, asked, args.seed)))
    found = fitted(middle(rounds), replicas)
    result |= {**asdict(found), "rounds": [asdict(one) for one in rounds]}
    return {**result, "check": check(found, asked, plays, args.seed)} if args.check else result


if __name__ == "__main__":
    main()
