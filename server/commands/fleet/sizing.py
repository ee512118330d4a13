"""How many replicas a workload needs to reach its goals, by simulation of the server's own router and admission.

The workload is a TOML file: what each mode is asked and what it is to reach, and step times that were measured
(`python -m benchmarks.fleet_fit`) for one or several ways to divide the model. No speed is guessed: a way of which
nothing was measured is not considered.
"""

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import quantiles
from typing import Annotated

import msgspec

from server.cli_errors import UsageError
from server.commands.fleet.engine import Engine, Request
from server.commands.fleet.simulation import Own, Simulation, Turn, around

_MOST_TIMES = 16
"""Replicas are tried up to so many times what the work alone needs; where that is too few, more do not help."""
_FEWEST_REQUESTS = 400
_SECONDS_OF_A_TURN = 30.0

Positive = Annotated[float, msgspec.Meta(gt=0.0)]
Tokens = Annotated[int, msgspec.Meta(ge=0)]


class ModeLoad(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A mode's requests: `rate` a second in all; lengths in tokens, their medians; goals in seconds, p95.

    `first_token_p95` counts to the first token of any kind, `whole_p95` to the last.
    """

    rate: Positive
    prompt: Annotated[int, msgspec.Meta(ge=1)]
    answer: Annotated[int, msgspec.Meta(ge=1)]
    later_prompt: Annotated[int, msgspec.Meta(ge=1)] = 200
    thinking: Tokens = 0
    first_token_p95: Positive | None = None
    whole_p95: Positive | None = None


class EngineTimes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was measured of an engine on `tensor_parallel` devices; fields as of `engine.Engine`."""

    step: Positive
    row: Annotated[float, msgspec.Meta(ge=0.0)]
    read: Annotated[float, msgspec.Meta(ge=0.0)]
    tensor_parallel: Annotated[int, msgspec.Meta(ge=1)] = 1
    places: Annotated[int, msgspec.Meta(ge=1)] = Engine.places
    chunk: Annotated[int, msgspec.Meta(ge=1)] = Engine.chunk
    at_once: Annotated[int, msgspec.Meta(ge=1)] = Engine.at_once
    reading: Annotated[float, msgspec.Meta(ge=0.0)] = Engine.reading
    latency: Annotated[float, msgspec.Meta(ge=0.0)] = Engine.latency

    def engine(self, places: int, cache: int) -> Engine:
        """As it is simulated, with so many places and tokens in its cache."""
        return Engine(
            self.step, self.row, self.read, places, self.chunk, cache, self.at_once, self.reading, self.latency
        )


class Workload(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Conversations of `turns`, `pause` seconds (the mean) between an answer and the next turn, in several modes.

    `servers`: whether each replica is a server of its own, behind a router, or all are behind one front end.
    """

    modes: Annotated[dict[str, ModeLoad], msgspec.Meta(min_length=1)]
    engines: Annotated[tuple[EngineTimes, ...], msgspec.Meta(min_length=1)]
    turns: Annotated[int, msgspec.Meta(ge=1)] = 1
    pause: Positive = 20.0
    servers: bool = False

    @property
    def requests_a_second(self) -> float:
        """Of all modes."""
        return sum(mode.rate for mode in self.modes.values())

    @property
    def typical_tokens(self) -> int:
        """Of a request in a conversation's last turn, the longest mode's: prompt, what came before, and output."""
        return max(
            mode.prompt + (self.turns - 1) * mode.later_prompt + self.turns * (mode.thinking + mode.answer)
            for mode in self.modes.values()
        )


@dataclass(frozen=True)
class Conversations:
    """A workload as the simulation draws it."""

    workload: Workload
    conversations: int

    @property
    def rate(self) -> float:
        """Conversations that begin a second."""
        return self.workload.requests_a_second / self.workload.turns

    @property
    def turns(self) -> int:
        """Of each."""
        return self.workload.turns

    @property
    def pause(self) -> float:
        """Mean seconds between turns."""
        return self.workload.pause

    @property
    def kinds(self) -> Mapping[str, bool]:
        """A mode thinks that has tokens for it."""
        return {name: mode.thinking > 0 for name, mode in self.workload.modes.items()}

    def draw(self, _conversation: int, turn: int, rng: Random) -> Turn:
        """Modes in the shares of their rates; lengths are log-normal around their medians."""
        modes = self.workload.modes
        (name,) = rng.choices(list(modes), [mode.rate for mode in modes.values()])
        mode = modes[name]
        more = around(mode.later_prompt if turn else mode.prompt, rng)
        answer = around(mode.answer, rng)
        return Turn(name, more, around(mode.thinking, rng) if mode.thinking else 0, answer)


@dataclass(frozen=True)
class Reached:
    """What a mode's requests found, seconds, and the most of them that were there at once, in the whole fleet."""

    first_token_p95: float
    whole_p95: float
    running: int

    def meets(self, goals: ModeLoad) -> bool:
        """Whether both goals, where there are any."""
        return self.first_token_p95 <= (goals.first_token_p95 or math.inf) and self.whole_p95 <= (
            goals.whole_p95 or math.inf
        )


@dataclass(frozen=True)
class Sizing:
    """So many replicas of an engine, and what each mode finds with them."""

    engine: EngineTimes
    places: int
    replicas: int
    modes: dict[str, Reached]

    @property
    def devices(self) -> int:
        """Of all replicas."""
        return self.replicas * self.engine.tensor_parallel


def read(path: Path) -> Workload:
    """The workload in a TOML file. Raises UsageError."""
    try:
        return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Workload)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise UsageError(f"{path}: {error}") from error


def fewest(workload: Workload, times: EngineTimes, places: int, cache: int) -> Sizing:
    """The fewest replicas that meet all goals, each with so many places and tokens in its cache.

    Raises UsageError where more replicas do not help.
    """
    engine = times.engine(places, cache)
    low = least(workload, engine)
    most = low * _MOST_TIMES
    high, met = low, reached(workload, engine, low)
    while not _all_met(workload, met):
        if high >= most:
            raise UsageError(_out_of_reach(workload, met, high, times))
        low, high = high + 1, min(2 * high, most)
        met = reached(workload, engine, high)
    while low < high:
        middle = (low + high) // 2
        found = reached(workload, engine, middle)
        if _all_met(workload, found):
            high, met = middle, found
        else:
            low = middle + 1
    return Sizing(times, places, high, met)


def least(workload: Workload, engine: Engine) -> int:
    """Replicas without which the work is more than they can do, with all places taken and all pages found."""
    spread = math.exp(0.7**2 / 2)  # the mean of what `around` draws, in medians
    seconds = sum(
        mode.rate * spread * work(engine, mode.later_prompt, mode.thinking + mode.answer)
        for mode in workload.modes.values()
    )
    return max(1, math.ceil(seconds))


def work(engine: Engine, prompt: float, drawn: float) -> float:
    """The least seconds of an engine for a request of so many tokens, which are those where all places are taken."""
    return drawn * (engine.step / engine.places + engine.row) + prompt * engine.read


def reached(workload: Workload, engine: Engine, replicas: int) -> dict[str, Reached]:
    """What each mode finds, once as many conversations run as begin: of requests in the last two thirds of the time."""
    rarest = min(mode.rate for mode in workload.modes.values())
    seconds = max(
        _FEWEST_REQUESTS / workload.requests_a_second,
        _FEWEST_REQUESTS / 4 / rarest,
        3 * workload.turns * (workload.pause + _SECONDS_OF_A_TURN),
    )
    asked = Conversations(workload, math.ceil(seconds * workload.requests_a_second / workload.turns))
    done = Simulation(replicas, engine, asked, Own(replicas, engine), servers=workload.servers).run()
    counted = [one for one in done if seconds / 3 <= one.arrived <= seconds]
    return {name: _of([one for one in counted if one.kind == name]) for name in workload.modes}


def _of(requests: Sequence[Request]) -> Reached:
    return Reached(
        p95([one.first - one.arrived for one in requests]),
        p95([one.ended - one.arrived for one in requests]),
        _at_once(requests),
    )


def p95(values: Sequence[float]) -> float:
    """The value below which 95 of 100 lie, interpolated; infinite where there are none."""
    if len(values) < 2:
        return values[0] if values else math.inf
    return quantiles(values, n=20, method="inclusive")[-1]


def _at_once(requests: Sequence[Request]) -> int:
    changes = sorted([(one.arrived, 1) for one in requests] + [(one.ended, -1) for one in requests])
    most = running = 0
    for _, change in changes:
        running += change
        most = max(most, running)
    return most


def _all_met(workload: Workload, found: dict[str, Reached]) -> bool:
    return all(found[name].meets(goals) for name, goals in workload.modes.items())


def _out_of_reach(workload: Workload, found: dict[str, Reached], replicas: int, times: EngineTimes) -> str:
    name = next(name for name, goals in workload.modes.items() if not found[name].meets(goals))
    goals, at = workload.modes[name], found[name]
    return (
        f"mode {name}: with {replicas} replicas of {times.tensor_parallel} devices the first token of 95 of 100 comes "
        f"after {at.first_token_p95:.2f} s and the last after {at.whole_p95:.1f} s, wanted are "
        f"{goals.first_token_p95 or math.inf:g} and {goals.whole_p95 or math.inf:g}; more replicas do not help, "
        "faster steps would"
    )
