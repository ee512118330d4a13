"""Thoughts that are ended early: what a server is asked, and the arithmetic of it."""

from collections.abc import Iterator

import pytest

from evals import early
from evals.early import Point, Thought, Trial, ended, oracle, summarize
from tasks.families import held_out_items
from tests.evals.test_eval import reading, server_of, writes

RIGHT_EARLY = Thought(1, 100, [Trial("no", 0, -2.0, 40, 3), Trial("4", 1, -0.1, 70, 3), Trial("4", 1, -0.1, 90, 3)])
SURE_AND_WRONG = Thought(1, 100, [Trial("5", 0, -0.1, 40, 3), Trial("4", 1, -0.5, 70, 3)])


def test_a_thought_ends_where_a_trial_is_sure() -> None:
    assert ended([RIGHT_EARLY], -1.0, 1) == Point(1, 70, 73)
    assert ended([RIGHT_EARLY], -1.0, 2) == Point(1, 90, 96)
    assert ended([RIGHT_EARLY], -1.0, 3) == Point(1, 100, 109)
    assert ended([SURE_AND_WRONG], -0.2, 1) == Point(0, 40, 40)
    doubted = Thought(1, 100, [Trial("4", 1, -3.0, 40, 3), Trial("4", 1, -0.1, 70, 3)])
    assert ended([doubted], -1.0, 2) == Point(1, 100, 106)
    assert ended([RIGHT_EARLY, SURE_AND_WRONG], 1.0, 1) == Point(1, 100, 107.5)


def test_what_keeps_the_accuracy() -> None:
    found = summarize([RIGHT_EARLY, SURE_AND_WRONG])
    assert found["early"]["1"] == {"threshold": None, "accuracy": 1.0, "tokens": 1.0, "with_trials": 1.075}
    assert found["early"]["2"] == {"threshold": -2.0, "accuracy": 1.0, "tokens": 0.95, "with_trials": 1.01}
    assert found["asked"] == 7


def test_the_oracle_ends_where_all_that_follows_is_right() -> None:
    assert oracle([RIGHT_EARLY]) == Point(1, 70, 70)
    wavering = Thought(1, 100, [Trial("4", 1, -0.1, 40, 3), Trial("5", 0, -0.1, 70, 3), Trial("4", 1, -0.1, 90, 3)])
    assert oracle([wavering]) == Point(1, 90, 90)
    assert oracle([Thought(0, 100, [Trial("4", 1, -0.1, 40, 3)])]) == Point(1, 40, 40)
    assert oracle([Thought(1, 100, [])]) == Point(1, 100, 100)
    assert summarize([RIGHT_EARLY, SURE_AND_WRONG])["oracle"] == {"accuracy": 1.0, "tokens": 0.7}


def test_thresholds_are_told_of_other_items_than_they_were_found_on() -> None:
    """What the first of two finds, a threshold that any trial of its own passes, costs the other its answer."""
    easy = Thought(1, 100, [Trial("4", 1, -0.5, 40, 3)])
    hard = Thought(1, 100, [Trial("5", 0, -0.1, 40, 3)])
    found = summarize([easy, hard])
    assert found["early"]["1"] == {"threshold": None, "accuracy": 1.0, "tokens": 1.0, "with_trials": 1.03}
    assert found["held_out"]["1"] == {"accuracy": 0.5, "tokens": 0.7, "with_trials": 0.715}
    assert summarize([easy])["held_out"]["1"] is None


async def test_the_thought_is_the_same_up_to_each_trial() -> None:
    (item,) = held_out_items(("chain_sum",), 1, 0)
    thought = "1 + 1 = 2\n" * 20
    seen: list[str] = []

    def script(prompt_ids: list[int]) -> Iterator[int]:
        """Knows the answer once half of it is thought."""
        _, said = reading(prompt_ids)
        if said == "<think>\n":
            yield from writes(f"{thought}</think>\n\n{item.answer}")
            return
        seen.append(said.removeprefix("<think>\n").partition("\n\nTime")[0].partition("\nStop.")[0])
        yield from writes(item.answer if len(seen[-1]) > len(thought) / 2 else "none")

    async with server_of(script) as (server, _):
        found = await early.evaluate(server, ("chain_sum",), 1, 0)
    assert all(thought.startswith(part) for part in seen)
    assert found["asked"] == 1 + len(seen)
    assert len(seen) > 2
    assert found["early"]["2"]["accuracy"] == found["summary"]["accuracy"] == 1.0
    assert found["early"]["2"]["tokens"] <= 1.0
    assert found["command"] == "twogear eval early --items 1 --seed 0 --families chain_sum"
    assert early._table(found).row_count == 4
    assert found["oracle"]["tokens"] < 1.0


@pytest.mark.parametrize("trials", [[], [Trial("4", 1, -0.1, 40, 3)]])
def test_short_thoughts(trials: list[Trial]) -> None:
    assert 0 < summarize([Thought(1, 50, trials)])["early"]["2"]["tokens"] <= 1
