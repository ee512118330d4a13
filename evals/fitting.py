"""Fits the weights of several signals of a draft to whether it was right: a logistic regression, by Newton's method.

Arithmetic over recorded log-probabilities; asks nobody.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evals.thresholds import Pair, Weighed, halves, signal_of, weighed
from server.modes.confidence import Named, Weights

FITTED = "fitted"
"""How the fitted signal is called beside the named ones."""
NAMED: tuple[Named, ...] = ("sum", "mean", "least", "first")
"""Those that are weighed, with the length: entropy costs the engine the 20 likeliest tokens, and added nothing."""
RIDGE = 1.0
"""By how much a weight of a feature with variance 1 is drawn to 0, in questions."""
STEPS = 30
DIGITS = 6


def fitted_weights(pairs: Sequence[Pair], draft_tokens: int) -> Weights | None:
    """Of drafts of so many tokens at most; None where all were right, or all wrong. Empty drafts count for nothing."""
    drafts = [pair for pair in pairs if pair.entries]
    right = np.array([pair.direct_score == 1.0 for pair in drafts], float)
    if len(set(right)) < 2:
        return None
    features = np.array([_features(pair, draft_tokens) for pair in drafts])  # (drafts, features)
    mean, scale = features.mean(0), features.std(0)
    scale[scale < 1e-9] = np.inf  # what is always the same has no weight
    found = _regression((features - mean) / scale, right)
    weights = found[1:] / scale
    bias = found[0] - (weights * mean).sum()
    names = (*NAMED, "length")
    return Weights(
        bias=round(float(bias), DIGITS), **{n: round(float(w), DIGITS) for n, w in zip(names, weights, strict=True)}
    )


def cross_fitted(pairs: Sequence[Pair], draft_tokens: int) -> list[Weighed] | None:
    """The signal of every draft by weights that were fitted without it: each half's by those of the other."""
    signals = [Weighed(0.0, ())] * len(pairs)
    one, other = halves(pairs)
    for half, rest in ((one, other), (other, one)):
        weights = fitted_weights([pairs[place] for place in rest], draft_tokens)
        if weights is None:
            return None
        for place in half:
            signals[place] = weighed(pairs[place], weights, draft_tokens)
    return signals


def _features(pair: Pair, draft_tokens: int) -> list[float]:
    length = float(min(draft_tokens, len(pair.entries)))
    return [*(signal_of(pair, name, draft_tokens) for name in NAMED), length]


def _regression(features: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bias and weights of the likeliest model; `features` (questions, features) have mean 0 and variance 1."""
    inputs = np.column_stack([np.ones(len(features)), features])
    ridge = np.eye(inputs.shape[1]) * RIDGE
    ridge[0, 0] = 1e-6  # the bias is free, but bounded where drafts are told apart without a fault
    found = np.zeros(inputs.shape[1])
    for _ in range(STEPS):
        chance = 1.0 / (1.0 + np.exp(-inputs @ found))
        slope = inputs.T @ (right - chance) - ridge @ found
        found += np.linalg.solve((inputs.T * (chance * (1.0 - chance))) @ inputs + ridge, slope)
    return found
