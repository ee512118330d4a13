"""What a mode of kind `auto` would have come to with each threshold, from answers that were drawn in both of its modes.

Arithmetic over recorded log-probabilities; asks nobody. A draft is kept where its signal is at least the threshold,
and then costs its answer's tokens; else it costs the tokens that were drawn before it was dropped, and the thinker's.
It is dropped at the first token after which its signal cannot reach the threshold any more.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import NamedTuple, Protocol

from server.modes.confidence import ROUNDING, Signal, confidence, most_confidence


class Drawn(NamedTuple):
    """A token's log-probability, and (id, log-probability) of the likeliest in its place."""

    logprob: float
    top: Sequence[tuple[int, float]] = ()


@dataclass(frozen=True)
class Pair:
    """One item in both modes: scores from 0 to 1, tokens, and the entries of the direct answer's tokens.

    `ids` are these tokens with the one that ends them, and `trials` those of other direct answers, drawn at random.
    """

    family: str
    direct_score: float
    thinking_score: float
    direct_tokens: int
    thinking_tokens: int
    entries: Sequence[Drawn]
    ids: tuple[int, ...] = ()
    trials: tuple[tuple[int, ...], ...] = ()


class Point(NamedTuple):
    """With a `threshold`: the mean score, and the mean of tokens."""

    threshold: float
    accuracy: float
    tokens: float


def signal_of(pair: Pair, signal: Signal, draft_tokens: int) -> float:
    """Of the first tokens of a draft; of an empty one, which is always dropped, minus infinity."""
    entries = pair.entries[:draft_tokens]
    return confidence(signal, entries) if entries else -math.inf


class Weighed(NamedTuple):
    """The `signal` of a draft, and what it could still come to after each of its first tokens, which never rises."""

    signal: float
    most: Sequence[float]


def weighed(pair: Pair, signal: Signal, draft_tokens: int) -> Weighed:
    """A draft by a signal of its first tokens."""
    ends = range(1, min(draft_tokens, len(pair.entries)) + 1)
    most = [most_confidence(signal, pair.entries[:end], draft_tokens) for end in ends]
    return Weighed(signal_of(pair, signal, draft_tokens), most)


def all_weighed(pairs: Iterable[Pair], signal: Signal, draft_tokens: int) -> list[Weighed]:
    """All drafts."""
    return [weighed(pair, signal, draft_tokens) for pair in pairs]


def agreed(pair: Pair, draft_tokens: int) -> Weighed:
    """By how many of its trials begin as the draft does: 0 where all do, -1 where none does. Nothing is known before
    the draft is drawn.
    """
    alike = sum(trial[:draft_tokens] == pair.ids[:draft_tokens] for trial in pair.trials)
    signal = alike / len(pair.trials) - 1.0 if pair.entries else -math.inf
    return Weighed(signal, [0.0] * min(draft_tokens, len(pair.entries)))


def trial_tokens(pairs: Sequence[Pair], draft_tokens: int) -> float:
    """Mean of what an item's trials draw, each no more than the draft may."""
    return fmean(sum(min(draft_tokens, len(trial)) for trial in pair.trials) for pair in pairs)


def curve(pairs: Sequence[Pair], drafts: Sequence[Weighed], draft_tokens: int) -> list[Point]:
    """The points of all thresholds that differ, the highest first: from thinking always to the drafts that can be kept.

    The first threshold is above 0, which no signal reaches.
    """
    accuracy = sum(pair.thinking_score for pair in pairs)
    tokens: float = sum(pair.thinking_tokens + bool(pair.direct_tokens) for pair in pairs)
    points = [Point(math.inf, accuracy / len(pairs), tokens / len(pairs))]
    changes = [one for pair, draft in zip(pairs, drafts, strict=True) for one in _changes(pair, draft, draft_tokens)]
    changes.sort(key=lambda one: -one.threshold)
    kept = False
    for number, one in enumerate(changes, 1):
        accuracy, tokens, kept = accuracy + one.accuracy, tokens + one.tokens, kept or one.keeps
        if kept and (number == len(changes) or changes[number].threshold < one.threshold):
            points.append(Point(one.threshold, accuracy / len(pairs), tokens / len(pairs)))
            kept = False
    return points


class _Change(NamedTuple):
    """Of score and tokens of an item, where the threshold falls to this; `keeps`: its draft is kept from there on."""

    threshold: float
    accuracy: float
    tokens: float
    keeps: bool


def _changes(pair: Pair, draft: Weighed, draft_tokens: int) -> Iterator[_Change]:
    """From a draft that is dropped after its first token to one that is kept, if it can be."""
    drawn = 1
    last = min(draft_tokens, pair.direct_tokens)
    for end, most in enumerate(draft.most, 1):
        further = min(end + 1, last)  # beyond its tokens there may be the one that ends it
        if further > drawn:
            yield _Change(most + ROUNDING, 0.0, further - drawn, keeps=False)
            drawn = further
    if draft.signal > -math.inf:
        gained = pair.direct_score - pair.thinking_score
        yield _Change(draft.signal, gained, pair.direct_tokens - drawn - pair.thinking_tokens, keeps=True)


class OfFamily(Protocol):
    """What belongs to a family of questions."""

    @property
    def family(self) -> str:
        """Its name."""


def halves(pairs: Sequence[OfFamily]) -> tuple[list[int], list[int]]:
    """The places of two halves, one to fit on and one to tell on: of each family every other pair, as questions come
    family by family in turn.
    """
    found: tuple[list[int], list[int]] = ([], [])
    seen: Counter[str] = Counter()
    for place, pair in enumerate(pairs):
        found[seen[pair.family] % 2].append(place)
        seen[pair.family] += 1
    return found


def oracle(pairs: Sequence[Pair], draft_tokens: int) -> Point:
    """If it were known which drafts are at least as good as what thinking would bring; the others are drawn all the
    same, so that a signal that drops them early may save more.
    """
    keeps = [pair.direct_score >= pair.thinking_score for pair in pairs]
    scores = [pair.direct_score if keep else pair.thinking_score for pair, keep in zip(pairs, keeps, strict=True)]
    spent = [
        pair.direct_tokens if keep else _dropped(pair, draft_tokens) for pair, keep in zip(pairs, keeps, strict=True)
    ]
    return Point(math.nan, sum(scores) / len(pairs), sum(spent) / len(pairs))


def cheapest(points: Iterable[Point], accuracy: float) -> Point | None:
    """Of those at least so accurate, the one with the fewest tokens; None where there is none."""
    return min((point for point in points if point.accuracy >= accuracy), key=lambda one: one.tokens, default=None)


def best(points: Iterable[Point], tokens: float) -> Point | None:
    """Of those with at most so many tokens, the most accurate; None where there is none."""
    return max((point for point in points if point.tokens <= tokens), key=lambda one: one.accuracy, default=None)


def auc(pairs: Sequence[Pair], drafts: Sequence[Weighed]) -> float | None:
    """The chance that a right draft has a higher signal than a wrong one; None where all are alike."""
    values = [(draft.signal, pair.direct_score == 1.0) for draft, pair in zip(drafts, pairs, strict=True)]
    right, wrong = ([value for value, is_right in values if is_right is kind] for kind in (True, False))
    if not (right and wrong):
        return None
    wins = sum((one > other) + 0.5 * (one == other) for one in right for other in wrong)
    return wins / (len(right) * len(wrong))


def area(points: Sequence[Point], start: Point, end: Point) -> float:
    """Between a curve and mixing two modes at random, the straight line from `start` to `end`; accuracy times tokens.

    Beyond `end`, the line goes on as it is there.
    """

    def above(point: Point) -> float:
        share = (point.tokens - start.tokens) / (end.tokens - start.tokens) if end.tokens > start.tokens else 1.0
        return point.accuracy - start.accuracy - min(1.0, share) * (end.accuracy - start.accuracy)

    ordered = sorted(points, key=lambda one: one.tokens)
    return sum((two.tokens - one.tokens) * (above(one) + above(two)) / 2 for one, two in pairwise(ordered))


def modes_alone(pairs: Sequence[Pair]) -> tuple[Point, Point]:
    """The direct mode for all, and the thinking mode for all, without a draft."""
    direct = Point(-math.inf, fmean(pair.direct_score for pair in pairs), fmean(pair.direct_tokens for pair in pairs))
    thinking = (fmean(pair.thinking_score for pair in pairs), fmean(pair.thinking_tokens for pair in pairs))
    return direct, Point(math.inf, *thinking)


def _dropped(pair: Pair, draft_tokens: int) -> int:
    return min(draft_tokens, pair.direct_tokens) + pair.thinking_tokens
