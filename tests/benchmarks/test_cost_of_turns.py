"""The table of docs/conversations.md agrees with the result file, and its columns add up."""

import json

from benchmarks.cost_of_turns import PAGE, Turn, table
from benchmarks.load.records import RESULTS


def test_the_page_shows_the_newest_result() -> None:
    result = json.loads(max(RESULTS.glob("cost_of_turns_*.json")).read_text())
    assert table(result) in PAGE.read_text()


def test_what_is_computed_again() -> None:
    turn = Turn(prompt=300, cached=160, new=30, shared=175, reasoning=40)
    assert (turn.dropped, turn.page) == (95, 15)
    assert turn.prompt == turn.cached + turn.page + turn.dropped + turn.new
