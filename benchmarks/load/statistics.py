"""Makes figures of the samples of a load, and medians of the figures of several rounds."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from benchmarks.load.accounting import Sample


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One load on one server in one round, or the medians over rounds. Times in seconds, None if it never happened.

    `first` and `first_answer` count from the request; `per_token` is the time between two tokens of a request, from
    its first to its end. Requests in `failed` count in no other figure.
    """

    tokens_per_second: float | None
    first: float | None
    first_p95: float | None
    first_answer: float | None
    first_answer_p95: float | None
    per_token: float | None
    per_token_p95: float | None
    prompt_tokens: float | None
    failed: float | None


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of `values` lie, interpolated. `values` may not be empty."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
    return low + (high - low) * (place - math.floor(place))


def figures(samples: Iterable[Sample], seconds: float) -> Figures:
    """The figures of one load that took `seconds` from its first request to its last answer."""
    samples = list(samples)
    good = [sample for sample in samples if sample.error is None]
    first = [sample.first - sample.started for sample in good if sample.first is not None]
    answer = [sample.first_answer - sample.started for sample in good if sample.first_answer is not None]
    per_token = [
        (sample.ended - sample.first) / (sample.completion_tokens - 1)
        for sample in good
        if sample.first is not None and sample.completion_tokens > 1
    ]
    tokens = sum(sample.completion_tokens for sample in good)
    return Figures(
        tokens_per_second=tokens / seconds if good and seconds > 0 else None,
        first=_median(first),
        first_p95=_p95(first),
        first_answer=_median(answer),
        first_answer_p95=_p95(answer),
        per_token=_median(per_token),
        per_token_p95=_p95(per_token),
        prompt_tokens=_median([sample.prompt_tokens for sample in good]),
        failed=len(samples) - len(good),
    )


def over_rounds(rounds: Sequence[Figures]) -> Figures:
    """Of each figure the median over the rounds in which it was measured."""
    values = {
        field.name: [value for one in rounds if (value := getattr(one, field.name)) is not None]
        for field in fields(Figures)
    }
    return Figures(**{name: _median(measured) for name, measured in values.items()})


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _p95(values: Sequence[float]) -> float | None:
    return percentile(values, 0.95) if values else None
