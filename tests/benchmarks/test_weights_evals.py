"""What is told of the same questions answered with other weights, from answers that are made up."""

import pytest

from benchmarks.weights_evals import Answers, figures, table

BF16 = Answers("bf16", {"standard": [1.0, 0.0, 1.0, 0.0]})


def test_differences_are_of_the_same_question() -> None:
    found = figures([BF16, Answers("int8", {"standard": [1.0, 1.0, 1.0, 0.0]})])
    assert found[0] == {"mode": "standard", "weights": "bf16", "accuracy": 50.0}
    assert found[1]["accuracy"] == 75.0
    assert found[1]["difference"] == 25.0
    assert found[1]["differing"] == 1
    assert found[1]["half_width"] == pytest.approx(1.96 * 50 / 2)
    assert "| standard | int8 | 75.00 | +25.00 ± 49.00 |" in table(found)


def test_what_differs_both_ways_is_no_difference_in_the_mean() -> None:
    found = figures([BF16, Answers("int4", {"standard": [0.0, 1.0, 1.0, 0.0]})])
    assert found[1]["difference"] == 0.0
    assert found[1]["differing"] == 2
    assert found[1]["half_width"] > 0
