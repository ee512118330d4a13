"""The search for the request to blame, without an engine: whoever fails is found, nobody else is blamed."""

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from engine.blame import CLEARED_AFTER, Blame


def search(ran: list[str], fails: Callable[[set[str]], bool]) -> tuple[set[str], int]:
    """Those who were blamed, and how many steps failed; a part runs alone, together with those that are cleared."""
    blame = Blame()
    blamed: set[str] = set()
    failures = 0
    running = list(ran)
    while True:
        if fails(set(running)):
            failures += 1
            culprit = blame.failed(running)
            blamed |= {culprit} - {None}  # type: ignore[arg-type]
            running = []
        else:
            for one in running:
                blame.drew(one, CLEARED_AFTER)
        if not blame.active:
            return blamed, failures
        running += blame.next_group()


@given(st.integers(1, 40), st.data())
def test_those_who_fail_alone_are_blamed_and_no_others(size: int, data: st.DataObject) -> None:
    ran = [str(number) for number in range(size)]
    guilty = set(data.draw(st.lists(st.sampled_from(ran), min_size=1, max_size=4)))
    blamed, failures = search(ran, lambda running: bool(running & guilty))
    assert blamed == guilty
    assert failures <= 1 + len(guilty) * size.bit_length()


def test_where_no_part_fails_nobody_is_blamed() -> None:
    ran = ["a", "b", "c", "d"]
    first = iter([True])
    assert search(ran, lambda running: next(first, False)) == (set(), 1)


def test_one_that_has_left_is_not_waited_for() -> None:
    blame = Blame()
    assert blame.failed(["a", "b", "c", "d"]) is None
    assert blame.next_group() == ["a", "b"]
    blame.left("c")
    blame.drew("a", CLEARED_AFTER)
    assert blame.next_group() == []
    blame.left("b")
    assert blame.next_group() == ["d"]
    blame.left("d")
    assert blame.next_group() == []
    assert not blame.active


def test_a_failure_without_requests_blames_nobody() -> None:
    blame = Blame()
    assert blame.failed([]) is None
    assert not blame.active
