"""Percentiles and figures, against numpy and against numbers worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.load.accounting import Sample
from benchmarks.load.statistics import figures, over_rounds, percentile


def sample(times: tuple[float, float | None, float | None, float], tokens: int, error: str | None = None) -> Sample:
    """`times`: started, first token, first of the answer, ended."""
    started, first, answer, ended = times
    return Sample(
        thinks=False,
        started=started,
        first=first,
        first_answer=answer,
        ended=ended,
        prompt_tokens=10,
        cached_tokens=0,
        completion_tokens=tokens,
        events=tokens,
        error=error,
    )


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0, 1))
def test_percentiles_are_numpys(values: list[float], share: float) -> None:
    assert percentile(values, share) == pytest.approx(np.quantile(values, share), abs=1e-6)


def test_figures_by_hand() -> None:
    samples = [
        sample((0.0, 1.0, 2.0, 5.0), 5),
        sample((1.0, 3.0, None, 9.0), 4),
        sample((0.0, 1.0, 1.0, 1.0), 1),  # one token has no time between tokens
        sample((0.0, 0.5, None, 2.0), 100, "cut off"),
    ]
    measured = figures(samples, 10.0)
    assert measured.tokens_per_second == 1.0
    assert measured.first == 1.0
    assert measured.first_p95 == pytest.approx(1.9)
    assert measured.first_answer == 1.5
    assert measured.per_token == 1.5
    assert measured.per_token_p95 == pytest.approx(1.95)
    assert measured.failed == 1
    assert measured.prompt_tokens == 10


def test_a_load_of_which_nothing_came_has_no_figures() -> None:
    measured = figures([sample((0.0, None, None, 3.0), 0, "refused")], 3.0)
    assert (measured.tokens_per_second, measured.first, measured.per_token, measured.failed) == (None, None, None, 1)


def test_medians_over_rounds_leave_out_what_was_not_measured() -> None:
    rounds = [
        figures([sample((0.0, 1.0, None, 3.0), 10)], 5.0),
        figures([sample((0.0, 2.0, 2.5, 3.0), 10)], 2.0),
        figures([sample((0.0, 4.0, None, 5.0), 10)], 10.0),
    ]
    measured = over_rounds(rounds)
    assert (measured.tokens_per_second, measured.first, measured.first_answer) == (2.0, 2.0, 2.5)
