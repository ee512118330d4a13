"""Thoughts that go round in circles are closed as a spent budget is, at the same token however they arrive."""

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals import loops
from evals.asking import Reply, Server
from server.cli_errors import UsageError
from server.core.repetition import RepetitionWatch
from server.modes.profile import ThinkingMode, load_profile
from server.modes.repetition import Repetition
from server.modes.thinking import ThinkingPlan
from tests.server.test_generate import CLOSING, END_OF_TURN, THINK_END, play

RULE = Repetition(window=32, ngram=3)
EMBEDDED = Path("server/modes/profiles/twogear_tiny.toml")


def closed_after(ids: Sequence[int], rule: Repetition = RULE) -> int | None:
    return RepetitionWatch(rule).feed(ids)


@pytest.mark.parametrize("period", [1, 2, 7, 30])
def test_every_loop_is_seen(period: int) -> None:
    found = closed_after([*range(1000, 1050), *(list(range(period)) * 100)])
    assert found is not None
    assert found <= 50 + RULE.window + RULE.count * period


def test_a_loop_that_counts_is_one_too() -> None:
    """`Step 7: … Step 8: …`, one token in twelve another each time."""
    step = [[number, *range(1000, 1011)] for number in range(200)]
    ids = [token_id for one in step for token_id in one]
    assert closed_after(ids, Repetition(window=64, ngram=2, share=0.8)) is not None


def test_a_loop_that_stumbles_is_seen_by_the_rule_as_it_is() -> None:
    """As the embedded model misspells a word without end: `ANDANDANagANDANag…`, drawn, after 74 tokens of a thought."""
    drawn = random.Random(3)
    loop = [token_id for _ in range(700) for token_id in ((7, 8, 9) if drawn.random() < 0.8 else (7, 5, 6))]
    found = closed_after([*range(1000, 1074), *loop], Repetition())
    assert found is not None
    assert found <= 1024 + 74 + 20


def test_what_only_looks_like_one_is_none() -> None:
    thrice = [*range(100)] * 3
    drawn = random.Random(1).choices(range(20), k=5000)
    assert closed_after(thrice) is None
    assert closed_after(drawn) is None
    assert closed_after([7] * (RULE.window - 1)) is None


@given(st.lists(st.integers(0, 3), min_size=20, max_size=300), st.lists(st.integers(1, 40), min_size=1, max_size=9))
def test_where_it_is_seen_does_not_depend_on_the_deltas(ids: list[int], cuts: list[int]) -> None:
    rule = Repetition(window=16, ngram=2, share=0.7)
    watch, start, found = RepetitionWatch(rule), 0, None
    for turn in range(len(ids)):
        piece = ids[start : start + cuts[turn % len(cuts)]]
        here = watch.feed(piece)
        if here is not None:
            found = start + here
            break
        start += len(piece)
    assert found == closed_after(ids, rule)
    assert found is None or found >= rule.window


@pytest.mark.parametrize("chunks", [[1], [5], [64]])
def test_the_thinking_is_closed_and_the_answer_follows(chunks: list[int]) -> None:
    plan = ThinkingPlan(150, (20, 21), CLOSING, "length", repetition=RULE)
    loop = [10, 11] * 50
    looped = closed_after(loop)
    assert looped is not None
    ids = [
        *loop[:looped],
        0,
        0,
        0,
        0,
        12,
        13,
        END_OF_TURN,
    ]  # the zeros stand where the wrap-up and the closing are said
    choice, engine, shown, closed = play(ids if chunks == [1] else [*loop, *ids[looped:]], plan, chunks)
    assert (choice.thinking_finish, closed, choice.reasoning_tokens) == ("repetition", 1, looped + 2)
    assert shown[:looped] == loop[:looped]
    assert choice.token_ids[looped : looped + 4] == [20, 21, *CLOSING]
    assert engine.aborted == ["id-0"]


def test_an_answer_may_repeat_itself() -> None:
    plan = ThinkingPlan(150, (), CLOSING, "length", repetition=RULE)
    choice, _, _, closed = play([10, THINK_END, *([12] * 90), END_OF_TURN], plan, [7])
    assert (choice.thinking_finish, choice.finish, closed) == ("natural", "stop", 0)


def test_the_rule_is_the_profiles(tmp_path: Path) -> None:
    written = EMBEDDED.read_text()
    path = tmp_path / "profile.toml"
    path.write_text(written + "\n[modes.reasoning.repetition]\nenabled = false\n")
    mode = load_profile(path).modes["reasoning"]
    assert isinstance(mode, ThinkingMode)
    assert not mode.repetition.enabled
    path.write_text(written + "\n[modes.reasoning.repetition]\ncount = 1\n")
    with pytest.raises(UsageError, match=r"int` >= 2 - at `\$\.modes\[\.\.\.\]\.repetition\.count`"):
        load_profile(path)


def test_the_evaluation_tells_loops_from_thoughts_that_end(monkeypatch: pytest.MonkeyPatch) -> None:
    class Scripted(Server):
        def __init__(self) -> None:
            self.asked = 0

        async def version(self) -> dict[str, str]:
            return {}

        async def mode_of_kind(self, kind: str) -> str:
            return "deep"

        async def ask(self, question: str, **fields: object) -> Reply:
            assert fields["reasoning_mode"] == "deep"
            self.asked += 1
            endless = question.startswith("Calculate ") and question.count(" + ") > 6
            ids = tuple([5] * 300 if endless else range(100))
            return Reply("", "", 1, len(ids) + 1, len(ids), "length" if endless else "natural", (*ids, 1))

    result = asyncio.run(loops.evaluate(Scripted(), 48, 1, 300, RULE))
    held_out, strange = result["kinds"]["held-out"], result["kinds"]["strange"]
    assert (held_out["ended"]["thoughts"], held_out["ended"]["closed"], held_out["endless"]["thoughts"]) == (42, 0, 0)
    assert strange["endless"]["thoughts"] == strange["endless"]["closed"] == 2
