"""The result files stay small: raw numbers of the speed benchmarks, a sample of the items of the evaluations."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.load.records import RESULTS
from benchmarks.result_text import result_text

FILES = sorted(RESULTS.glob("*.json"))
MOST_BYTES = 1_000_000  # of all files together
MOST_LINES = 3000  # of one
MOST_ITEMS = 50


def item_lists(value: Any) -> Iterator[list[Any]]:
    """The lists of asked items, wherever a result holds them."""
    if isinstance(value, dict):
        yield from (one for key, one in value.items() if key == "outcomes")
        for one in value.values():
            yield from item_lists(one)
    elif isinstance(value, list):
        for one in value:
            yield from item_lists(one)


def test_together_they_are_small() -> None:
    assert FILES
    assert sum(path.stat().st_size for path in FILES) < MOST_BYTES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_holds_a_sample_of_its_items(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= MOST_LINES
    assert all(len(items) <= MOST_ITEMS for items in item_lists(json.loads(text)))


def test_the_text_of_a_result() -> None:
    samples = [[0.123456789, 1] for _ in range(100)]
    result = {"what": "a benchmark", "machine": {"cores": 2}, "table": [{"samples": samples}, {}], "empty": []}
    text = result_text(result)
    lines = text.splitlines()
    assert lines[:4] == ["{", ' "what": "a benchmark",', ' "machine": {"cores": 2},', ' "table": [']
    assert lines.count("    [0.123457, 1],") == 99, "a sample a line, in six digits"
    assert json.loads(text)["table"][0]["samples"][0] == [pytest.approx(0.123456789, rel=1e-5), 1]
    assert json.loads(text)["empty"] == []
