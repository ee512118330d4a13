"""Needles lie where they should, are held out as they should, fit their length, and score as they should."""

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.needles import FAMILIES, NAMES, Binding, Needle, Sizing, draw, fit, is_held_out

families = st.sampled_from(FAMILIES)
depths = st.floats(0, 1)
seeds = st.integers(0, 10_000)
_KEY = rf"the (?!code)\w+ \w+|\b(?:{'|'.join(NAMES)})\b"


def statements(prompt: str) -> list[tuple[int, Binding]]:
    """Each sentence of the text that states a code: its number among the sentences, and what it states."""
    text = prompt.split("\n\n")[1]
    found = []
    for number, sentence in enumerate(text.split(". ")):
        value = re.search(r"\d{4,6}", sentence)
        key = re.search(_KEY, sentence, re.IGNORECASE)
        if value and key:
            found.append((number, Binding(key[0][0].lower() + key[0][1:] if " " in key[0] else key[0], value[0])))
    return found


@given(families, depths, seeds, st.booleans())
def test_all_bindings_of_a_question_are_on_one_side_of_the_split(
    family: str, depth: float, seed: int, held_out: bool
) -> None:
    stated = statements(draw(family, depth, random.Random(seed), held_out=held_out).prompt(20))
    assert len(stated) == {"single": 1, "distractors": 5, "several": 4, "variables": 2}[family]
    assert {is_held_out(binding) for _, binding in stated} == {held_out}
    assert len({binding.value for _, binding in stated}) == len({binding.key for _, binding in stated}) == len(stated)


@given(families, st.integers(0, 10), seeds)
def test_the_needle_lies_at_its_depth(family: str, tenth: int, seed: int) -> None:
    needle = draw(family, tenth / 10, random.Random(seed))
    stated = statements(needle.prompt(100))
    asked = needle.expected[0]
    (place,) = [number for number, binding in stated if asked in binding]
    assert 0 <= place - 10 * tenth < len(needle.placed)  # other needles before it push it back


@given(st.sampled_from(("single", "distractors", "several")), depths, seeds)
def test_the_text_answers_the_question(family: str, depth: float, seed: int) -> None:
    needle = draw(family, depth, random.Random(seed))
    keys = re.findall(_KEY, needle.question)
    values = {binding.key: binding.value for _, binding in statements(needle.prompt(30))}
    assert tuple(values[key] for key in keys) == needle.expected


@given(depths, seeds)
def test_holders_stand_after_those_they_have_their_code_from(depth: float, seed: int) -> None:
    needle = draw("variables", depth, random.Random(seed))
    holders: dict[str, str] = {}
    for sentence in needle.prompt(40).split("\n\n")[1].split(". "):
        named = re.findall("|".join(NAMES), sentence)
        if value := re.search(r"\d{4,6}", sentence):
            holders[named[0]] = value[0]
        elif "code" in sentence:
            holders[named[0]] = holders[named[1]]
    asked = re.search(r"\d{4,6}", needle.question)
    assert asked is not None
    assert {name for name, value in holders.items() if value == asked[0]} == set(needle.expected)


def test_chains_are_shorter_at_times_to_train_on_but_never_to_measure() -> None:
    lengths = {
        held_out: {len(draw("variables", 0.5, random.Random(seed), held_out=held_out).expected) for seed in range(30)}
        for held_out in (False, True)
    }
    assert lengths == {False: {1, 2, 3}, True: {3}}


@given(families, seeds, st.integers(150, 20_000))
def test_a_prompt_fills_its_length_and_not_more(family: str, seed: int, target: int) -> None:
    needle = draw(family, 0.5, random.Random(seed))
    asked: list[str] = []

    def count(text: str) -> int:
        asked.append(text)
        return len(re.findall(r"\w{1,4}|\S", text))

    prompt = fit(needle, target, count)
    assert target - max(40, target // 30) < count(prompt) <= target
    assert len(asked) < 10


def test_a_length_that_cannot_hold_the_question_is_an_error() -> None:
    with pytest.raises(ValueError, match="more than 10"):
        fit(draw("several", 0.5, random.Random(0)), 10, len)


def test_sizing_ends_where_no_size_is_close() -> None:
    sizing = Sizing(1000)
    while (sentences := sizing.next) is not None:
        sizing.tell(10 if sentences < 7 else 100_000)
    assert sizing.best == 6


def needle(family: str, *expected: str) -> Needle:
    return Needle(family, 0.5, "", (), "", expected, 0)


@pytest.mark.parametrize(
    ("answer", "score"),
    [("4711", 1.0), ("The code is 4711.", 1.0), ("4712", 0.0), ("", 0.0), ("4711, 4712", 0.5), ("47110", 0.0)],
)
def test_one_code(answer: str, score: float) -> None:
    assert needle("single", "4711").score(answer) == score


@pytest.mark.parametrize(
    ("answer", "score"), [("11, 22, 33", 1.0), ("11 33 22", 1 / 3), ("11", 1 / 3), ("11, 22, 33, 44", 0.75)]
)
def test_several_codes_count_in_their_places(answer: str, score: float) -> None:
    assert needle("several", "11", "22", "33").score(answer) == score


@pytest.mark.parametrize(
    ("answer", "score"), [("Ben and Anna", 1.0), ("Anna", 0.5), (", ".join(NAMES), 0.1), ("Annabel", 0.0)]
)
def test_holders_count_in_any_order_and_wrong_ones_against(answer: str, score: float) -> None:
    assert needle("variables", "Anna", "Ben").score(answer) == score
