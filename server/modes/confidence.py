"""How sure a model was of the tokens that it drew, as one number: what a mode of kind `auto` decides by.

Knows log-probabilities only. The number is never above 0, and the higher it is, the surer was the model.
"""

import math
from collections.abc import Sequence
from typing import Literal, Protocol, get_args

import msgspec

Named = Literal["sum", "mean", "least", "first", "entropy"]
"""Of the draft's log-probabilities their sum, their mean, the least or the first; or the largest entropy, negative."""
ENTROPY_TOP = 20
"""So many of the likeliest tokens are told apart in an entropy; all others count as one. As many as vLLM tells."""

ROUNDING = 1e-9
"""By so much the same signal may differ as its parts are added in another order."""


class Entry(Protocol):
    """Of one token: its natural log-probability, and those of the likeliest in its place, by their ids."""

    @property
    def logprob(self) -> float:
        """The token's own."""

    @property
    def top(self) -> Sequence[tuple[int, float]]:
        """The likeliest, in order."""


class Weights(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of a logistic regression on several signals and on the draft's `length` in tokens. As a signal it is the natural
    logarithm of the chance that the draft is right.
    """

    bias: float = 0.0
    sum: float = 0.0
    mean: float = 0.0
    least: float = 0.0
    first: float = 0.0
    entropy: float = 0.0
    length: float = 0.0

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, msgspec.structs.astuple(self))):
            raise ValueError("a weight must be a finite number")


Signal = Named | Weights


def likeliest_needed(signal: Signal) -> int:
    """How many of the likeliest tokens have to be told with each one drawn."""
    has_entropy = signal.entropy != 0.0 if isinstance(signal, Weights) else signal == "entropy"
    return ENTROPY_TOP if has_entropy else 0


def confidence(signal: Signal, entries: Sequence[Entry]) -> float:
    """The signal of a draft whose tokens have these `entries`, at least one."""
    if isinstance(signal, Weights):
        return _chance(signal, entries)
    match signal:
        case "sum":
            return sum(entry.logprob for entry in entries)
        case "mean":
            return sum(entry.logprob for entry in entries) / len(entries)
        case "least":
            return min(entry.logprob for entry in entries)
        case "first":
            return entries[0].logprob
        case "entropy":
            return -max(_entropy(entry) for entry in entries)


def most_confidence(signal: Signal, entries: Sequence[Entry], tokens: int) -> float:
    """What the signal of a draft of at most so many `tokens` that begins with these entries, at least one, can come to.

    No token raises a sum, the least of them or the negative entropy; the mean is highest if all that follow are sure.
    """
    if len(entries) >= tokens or signal == "first":
        return confidence(signal, entries)
    if isinstance(signal, Weights):
        return _log_chance(_most_odds(signal, entries, tokens))
    return confidence("sum", entries) / tokens if signal == "mean" else confidence(signal, entries)


def _chance(weights: Weights, entries: Sequence[Entry]) -> float:
    weighed = {name: weight for name in get_args(Named) if (weight := getattr(weights, name)) != 0.0}
    odds: float = weights.bias + weights.length * len(entries)
    odds += sum(weight * confidence(name, entries) for name, weight in weighed.items())
    return _log_chance(odds)


def _log_chance(odds: float) -> float:
    return min(0.0, odds) - math.log1p(math.exp(-abs(odds)))


def _most_odds(weights: Weights, entries: Sequence[Entry], tokens: int) -> float:
    """Of a draft that ends here, or after any more tokens; without a bound where one of its falling signals weighs
    against it.
    """
    drawn = confidence("sum", entries)
    fixed = weights.bias + weights.first * confidence("first", entries) + weights.least * confidence("least", entries)
    if weights.entropy:
        fixed += weights.entropy * confidence("entropy", entries)
    ends = range(len(entries), tokens + 1)
    slopes = [weights.sum + weights.mean / end for end in ends]
    if min(weights.least, weights.entropy, *slopes[1:]) < 0.0:
        return math.inf
    return max(fixed + slope * drawn + weights.length * end for slope, end in zip(slopes, ends, strict=True))


def _entropy(entry: Entry) -> float:
    """In nats: of the likeliest tokens, and of all others as one."""
    logprobs = [logprob for _, logprob in entry.top[:ENTROPY_TOP] if logprob > -math.inf]
    rest = 1.0 - sum(map(math.exp, logprobs))
    told = -sum(math.exp(logprob) * logprob for logprob in logprobs)
    return max(0.0, told - (rest * math.log(rest) if rest > 0.0 else 0.0))
