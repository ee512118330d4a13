"""The arithmetic of thresholds, on answers that are made up."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.thresholds import (
    Drawn,
    Pair,
    Point,
    agreed,
    all_weighed,
    auc,
    best,
    cheapest,
    curve,
    oracle,
    trial_tokens,
)


def pair(direct: float, thinking: float, *logprobs: float, tokens: int | None = None) -> Pair:
    return Pair("sums", direct, thinking, tokens or len(logprobs) + 1, 100, [Drawn(one) for one in logprobs])


def curve_of(pairs: list[Pair], draft_tokens: int) -> list[Point]:
    return curve(pairs, all_weighed(pairs, "sum", draft_tokens), draft_tokens)


def auc_of(pairs: list[Pair]) -> float | None:
    return auc(pairs, all_weighed(pairs, "sum", 10))


SURE, UNSURE, WRONG = pair(1, 1, -0.1, -0.1), pair(1, 1, -1.0, -1.0), pair(0, 1, -2.0, -0.1)
PAIRS = [WRONG, SURE, UNSURE]


def test_a_curve_goes_from_thinking_always_to_never() -> None:
    points = curve_of(PAIRS, 10)
    assert [point.threshold for point in points] == pytest.approx([math.inf, -0.2, -2.0, -2.1])
    assert [point.accuracy for point in points] == pytest.approx([1, 1, 1, 2 / 3])
    assert [point.tokens for point in points] == pytest.approx([101, (3 + 2 * 101) / 3, (2 * 3 + 102) / 3, 3])


def test_a_dropped_draft_costs_what_was_drawn() -> None:
    """Up to the token after which its signal cannot reach the threshold any more."""
    long = pair(0, 1, *[-1.0] * 50)
    assert [point.tokens for point in curve_of([long], 4)] == [101, 51]
    late = pair(0, 1, *[-0.1] * 3, *[-9.0] * 47)
    better = pair(1, 1, -0.35, -0.1)
    assert [point.tokens for point in curve_of([late, better], 4)] == pytest.approx([101, (3 + 104) / 2, 27])
    assert [point.tokens for point in curve_of([late, better], 2)] == pytest.approx([101, (101 + 51) / 2, 27])


def test_an_empty_draft_is_never_kept() -> None:
    assert [point.accuracy for point in curve_of([pair(1, 0, tokens=1)], 4)] == [0]


def test_what_a_wish_finds() -> None:
    points = curve_of(PAIRS, 10)
    found = cheapest(points, 0.99)
    assert found is not None
    assert found.threshold == pytest.approx(-2.0)
    found = best(points, 70)
    assert found is not None
    assert found.accuracy == 1
    assert cheapest(points, 1.1) is None
    assert best(points, 1) is None


def test_a_signal_that_tells_right_from_wrong() -> None:
    assert auc_of(PAIRS) == 1
    assert auc_of([SURE, UNSURE]) is None
    assert auc_of([pair(1, 1, -1.0), pair(0, 1, -1.0)]) == 0.5


@given(
    st.lists(
        st.builds(
            lambda direct, thinking, logprobs: pair(direct, thinking, *logprobs),
            st.sampled_from([0, 1]),
            st.sampled_from([0, 1]),
            st.lists(st.floats(-9, 0), min_size=1, max_size=6),
        ),
        min_size=1,
        max_size=12,
    ),
    st.integers(1, 8),
)
def test_no_threshold_is_better_than_the_oracle(pairs: list[Pair], draft_tokens: int) -> None:
    top = oracle(pairs, draft_tokens)
    for point in curve(pairs, all_weighed(pairs, "mean", draft_tokens), draft_tokens):
        assert point.accuracy <= top.accuracy + 1e-9


def test_trials_that_agree() -> None:
    drawn = Pair("", 1.0, 1.0, 3, 50, [Drawn(-0.1), Drawn(-0.1)], (4, 5, 1), ((4, 5, 1), (4, 6, 7, 1), (4, 5, 6, 1)))
    assert agreed(drawn, 2).signal == pytest.approx(-1 / 3)
    assert agreed(drawn, 1).signal == 0.0
    assert agreed(drawn, 8).signal == pytest.approx(-2 / 3)
    assert agreed(Pair("", 0.0, 1.0, 1, 50, [], (1,), ((1,),)), 8).signal == -math.inf
    assert [trial_tokens([drawn], length) for length in (1, 2, 3, 8)] == [3, 6, 9, 11]
