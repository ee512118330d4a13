"""Every reasoning trace is true line by line and ends with reasoning-gym's answer."""

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.arithmetic import apply, operation_trace
from tasks.families import FAMILIES, Item, draw, held_out_items, is_held_out, rephrase, score

_COLUMN = re.compile(r"(\d)([-+*])(\d)([-+])(\d)=(\d)(\d)")


def _assert_columns_true(trace: str) -> None:
    for match in _COLUMN.finditer(trace):
        x, operator, y, _, carry, high, low = match.groups()
        a, b, c = int(x), int(y), int(carry)
        total = {"+": a + b + c, "*": a * b + c, "-": a - b - c}[operator]
        written = int(low) - 10 * int(high) if operator == "-" else 10 * int(high) + int(low)
        assert total == written, match.group()


@given(st.integers(-9999, 9999), st.sampled_from(["+", "-", "*"]), st.integers(-9999, 9999))
def test_operation_trace_is_true_and_ends_with_the_result(a: int, operator: str, b: int) -> None:
    trace = operation_trace(a, operator, b)  # type: ignore[arg-type]
    _assert_columns_true(trace)
    assert trace.endswith(f">{apply(a, operator, b)}")  # type: ignore[arg-type]


def _items(name: str, count: int, seed: int) -> list[Item]:
    rng = random.Random(seed)
    return [draw(name, rng, level=level % 4) for level in range(count)]


@pytest.mark.parametrize("name", FAMILIES)
def test_trace_ends_with_the_answer(name: str) -> None:
    for item in _items(name, 400, seed=1):
        _assert_columns_true(item.trace)
        assert re.split(r"[>=\n]", item.trace)[-1] == item.answer, item


@pytest.mark.parametrize("name", FAMILIES)
def test_scores_are_reasoning_gyms_and_can_fail(name: str) -> None:
    for item in _items(name, 20, seed=2):
        assert score(item, f" {item.answer}\n") == 1.0
        assert score(item, item.answer + "7") < 1.0
        assert score(item, "") < 1.0


@pytest.mark.parametrize("name", FAMILIES)
def test_rephrased_items_keep_what_is_asked(name: str) -> None:
    rng = random.Random(3)
    for item in _items(name, 100, seed=3):
        question = rephrase(item, rng).question.replace(" ", "")
        for asked in FAMILIES[name].asked(item.entry["metadata"]).values():
            assert asked.replace(" ", "") in question
            assert name == "leg_counting" or asked.replace(" ", "").strip('"') in item.question.replace(" ", "")


def test_held_out_questions_are_never_drawn_for_training() -> None:
    rng = random.Random(5)
    for name in FAMILIES:
        assert not any(is_held_out(draw(name, rng).entry) for _ in range(100))
        assert all(is_held_out(draw(name, rng, held_out=True).entry) for _ in range(30))


def test_one_problem_is_held_out_in_every_wording_and_family() -> None:
    for a in range(40):
        asked = [
            {"question": question, "metadata": {"expression": expression}}
            for question, expression in ((f"Calculate {a} * 7.", f"{a} * 7"), (f"What is {a}*7?", f"{a}*7"))
        ]
        assert is_held_out(asked[0]) == is_held_out(asked[1])


def test_held_out_items_are_reproducible_and_distinct() -> None:
    names = ("chain_sum", "products")
    first = [item.question for item in held_out_items(names, 60, seed=6)]
    assert first == [item.question for item in held_out_items(names, 60, seed=6)]
    assert first != [item.question for item in held_out_items(names, 60, seed=7)]
    assert len(set(first)) == len(first)
