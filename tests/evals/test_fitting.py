"""Fitted weights of signals, on drafts that are made up."""

import math
import random

import pytest

from evals.fitting import cross_fitted, fitted_weights
from evals.thresholds import Drawn, Pair, all_weighed, auc, signal_of
from server.modes.confidence import Weights


def drawn(count: int, seed: int = 1) -> list[Pair]:
    """Drafts of 1 to 8 tokens: the odds that one is right are 1 + 2 * sum + 0.5 * length."""
    made, draw = [], random.Random(seed)
    for _ in range(count):
        logprobs = [-draw.expovariate(1.5) for _ in range(draw.randint(1, 8))]
        chance = 1 / (1 + math.exp(-(1 + 2 * sum(logprobs) + 0.5 * len(logprobs))))
        right = float(draw.random() < chance)
        made.append(Pair("sums", right, 1, len(logprobs) + 1, 100, [Drawn(one) for one in logprobs]))
    return made


def test_the_chance_is_found_again() -> None:
    weights = fitted_weights(drawn(2000), 8)
    assert weights is not None
    for pair in drawn(50, seed=2):
        odds = 1 + 2 * sum(entry.logprob for entry in pair.entries) + 0.5 * len(pair.entries)
        assert math.exp(signal_of(pair, weights, 8)) == pytest.approx(1 / (1 + math.exp(-odds)), abs=0.08)


def test_drafts_that_were_not_seen_are_told_apart_better_than_by_a_single_signal() -> None:
    pairs = drawn(2000)
    signals = cross_fitted(pairs, 8)
    assert signals is not None
    fitted, alone = auc(pairs, signals), auc(pairs, all_weighed(pairs, "sum", 8))
    assert fitted is not None
    assert alone is not None
    assert fitted > alone + 0.01


def test_a_draft_is_not_told_by_weights_that_have_seen_it() -> None:
    pairs = drawn(100)
    signals = cross_fitted(pairs, 8)
    assert signals is not None
    wrong = [Pair("sums", 0, 1, 2, 100, [Drawn(-0.01)]) if n == 0 else pair for n, pair in enumerate(pairs)]
    changed = cross_fitted(wrong, 8)
    assert changed is not None
    assert changed[2::2] == signals[2::2]
    assert changed[1::2] != signals[1::2]


def test_what_is_alike_or_empty() -> None:
    """Features that are the same for all have no weight; without right and wrong drafts nothing can be fitted."""
    right, wrong = (Pair("sums", score, 1, 2, 100, [Drawn(-0.5)]) for score in (1, 0))
    empty = Pair("sums", 0, 1, 1, 100, [])
    assert fitted_weights([right, wrong, empty], 8) == Weights()
    assert fitted_weights([right] * 5, 8) is None
    assert cross_fitted([right, wrong] * 5, 8) is None
    assert fitted_weights([], 8) is None
