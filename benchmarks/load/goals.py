"""The project's goals for speed on two cores, and how far a result reaches them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.load import tables
from benchmarks.load.records import Result
from benchmarks.load.statistics import Figures

_LLAMA_CPP = ("llama.cpp", "llama.cpp-q8_0", "llama.cpp-q4_k_m")


@dataclass(frozen=True)
class Goal:
    """A figure that shall be at least, or at most, `bound`; `measured` is None if the result does not have it."""

    figure: str
    against: str
    bound: float
    measured: float | None
    at_most: bool = False
    unit: str = "×"

    @property
    def reached(self) -> bool | None:
        """None if it was not measured."""
        if self.measured is None:
            return None
        return self.measured <= self.bound if self.at_most else self.measured >= self.bound

    def cells(self) -> list[str]:
        """Its row."""
        sign = "≤" if self.at_most else "≥"
        measured = tables.NOTHING if self.measured is None else f"{self.measured:.2f}{self.unit}"
        told = {True: "yes", False: "no", None: tables.NOTHING}[self.reached]
        return [self.figure, f"{sign} {self.bound:g}{self.unit} {self.against}".strip(), measured, told]


def goals(result: Result) -> list[Goal]:
    """The goals for a result of this kind."""
    if result.what != "large":
        return list(_embedded(result))
    fewer_bits = _fewer_bits(result) if "twogear-int8" in tables.servers(result) else ()
    return [*_large(result), *fewer_bits]


def table(result: Result) -> tables.Cells:
    """Goal by goal."""
    return tables.Cells(["figure", "goal", "measured", "reached"], [goal.cells() for goal in goals(result)])


def _embedded(result: Result) -> Iterator[Goal]:
    wide, narrow = "128 half 100", "1 standard 100"
    for server, bound in (("vllm", 2.5), ("vllm-tuned", 1.6)):
        yield Goal("128 streams, tokens/s", server, bound, _ratio(result, wide, _speed, "twogear", server))
    bare = next((tables.bare_speed(result, load) for load in result.loads if load.name == wide), None)
    yield Goal(
        "128 streams, tokens/s", "the bare engine", 0.75, _divide(_figure(result, "twogear", wide, _speed), bare)
    )
    yield Goal("1 stream, tokens/s", "vllm", 2.0, _ratio(result, narrow, _speed, "twogear", "vllm"))
    ready = [one.ready for one in result.rounds if one.server == "twogear"]
    if ready:
        yield Goal("first start to ready", "", 25, ready[0], at_most=True, unit=" s")
        yield Goal("later start to ready", "", 12, ready[1] if ready[1:] else None, at_most=True, unit=" s")
    ours, theirs = (tables.front_end_cpu(result, name, wide) for name in ("twogear", "vllm"))
    yield Goal("front end's CPU per token", "vllm", 0.5, _divide(ours, theirs), at_most=True)


def _large(result: Result) -> Iterator[Goal]:
    for load in ("8 half 100", "32 half 100"):
        for server, bound in (("vllm", 2.0), ("vllm-tuned", 1.15), ("llama.cpp", 1.25)):
            yield Goal(f"{load}, tokens/s", server, bound, _ratio(result, load, _speed, "twogear", server))
    one, prompt = "1 standard 100", "1 standard 2000"
    yield Goal(
        "1 stream, time per token",
        "llama.cpp",
        1,
        _ratio(result, one, _per_token, "twogear", "llama.cpp"),
        at_most=True,
    )
    limit = next((tables.per_token_limit(result, load, "twogear") for load in result.loads if load.name == one), None)
    ours = _figure(result, "twogear", one, _per_token)
    yield Goal("1 stream, share of the limit of bf16 weights", "", 0.85, _divide(limit, ours))
    for server, bound in (("vllm-tuned", 1.0), ("llama.cpp", 1.5)):
        yield Goal("prompt of 2,000 tokens, speed", server, bound, _ratio(result, prompt, _first, server, "twogear"))
    sampled = _divide(_figure(result, "twogear", "1 reasoning 100", _per_token), ours)
    yield Goal("1 stream, sampled over greedy time per token", "", 1.03, sampled, at_most=True)


def _fewer_bits(result: Result) -> Iterator[Goal]:
    """Of weights in 8 and 4 bits, beside bfloat16's and llama.cpp's."""
    one, prompt = "1 standard 100", "1 standard 2000"
    for ours, theirs, bound in (("twogear-int8", "llama.cpp-q8_0", 0.85), ("twogear-int4", "llama.cpp-q4_k_m", 0.75)):
        measured = _ratio(result, one, _per_token, ours, theirs)
        yield Goal(f"1 stream, {ours}'s time per token", theirs, bound, measured, at_most=True)
    for load in ("8 half 100", "32 half 100"):
        figure = f"{load}, twogear-int8's tokens/s"
        yield Goal(figure, "twogear", 1.1, _ratio(result, load, _speed, "twogear-int8", "twogear"))
        speeds = [_figure(result, name, load, _speed) for name in _LLAMA_CPP]
        best = max((speed for speed in speeds if speed is not None), default=None)
        ours_speed = _figure(result, "twogear-int8", load, _speed)
        yield Goal(figure, "the best llama.cpp", 2.0, _divide(ours_speed, best))
    first = _ratio(result, prompt, _first, "twogear-int8", "twogear")
    yield Goal("prompt of 2,000 tokens, twogear-int8's time", "twogear", 1.0, first, at_most=True)


def _ratio(result: Result, load: str, what: Callable[[Figures], float | None], over: str, under: str) -> float | None:
    return _divide(_figure(result, over, load, what), _figure(result, under, load, what))


def _figure(result: Result, server: str, load: str, what: Callable[[Figures], float | None]) -> float | None:
    found = tables.of_load(result, server, load)
    return what(found) if found is not None else None


def _divide(over: float | None, under: float | None) -> float | None:
    return over / under if over is not None and under else None


def _speed(figures: Figures) -> float | None:
    return figures.tokens_per_second


def _per_token(figures: Figures) -> float | None:
    return figures.per_token


def _first(figures: Figures) -> float | None:
    return figures.first
