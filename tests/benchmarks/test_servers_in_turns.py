"""What is told of servers that took loads in turn, and rounds that one of them does not survive."""

import dataclasses
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import servers_in_turns
from benchmarks.load.records import LoadRecord, ServerRecord
from benchmarks.servers_in_turns import LOADS, table
from tests.benchmarks.load import results


def rounds(server: str, *seconds: float) -> list[ServerRecord]:
    """One load record a round, in which ten tokens after the first take so long, and the first one second."""
    records = (results.record(one, results.sample(one)) for one in seconds)
    return [ServerRecord(server, n, loads={load.name: one for load in LOADS}) for n, one in enumerate(records)]


def test_ratios_are_medians_of_each_rounds_ratio() -> None:
    measured = [*rounds("twogear", 1.0, 4.0, 1.0), *rounds("llama.cpp", 2.0, 4.4, 3.0)]
    shown = table(dataclasses.replace(results.result(), loads=LOADS, rounds=measured))
    assert [list(column.cells) for column in shown.columns] == [
        ["twogear", "llama.cpp"],
        ["100, 1.00", "300, 2.00"],
        ["100, 1.00", "300, 2.00"],
        ["1000, 1.00", "1000, 1.00"],
    ]


def test_whole_rounds_count_where_a_server_fails_in_a_later_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    order: list[str] = []

    def serve(name: str, *_: object) -> AbstractContextManager[Any]:
        return nullcontext(SimpleNamespace(name=name))

    def drive(server: Any, *_: object) -> LoadRecord:
        order.append(server.name)
        if len(order) == 2 * 3 * 2 + 2 * 3 - 1:  # warm-up and a round of both are over, and most of another
            raise RuntimeError("the connection was lost")
        return results.record(1.0, results.sample(1.0))

    monkeypatch.setattr(servers_in_turns, "_serving", serve)
    monkeypatch.setattr(servers_in_turns, "measured", drive)
    done = list(servers_in_turns._rounds("embedded", ("a", "b"), LOADS, 5, tmp_path))
    assert [(one.server, one.round) for one in done] == [("a", 0), ("b", 0)]
    assert order[6:8] == ["a", "b"]
    assert order[12:14] == ["b", "a"]
    assert "round 2 does not count: b, the connection was lost" in capsys.readouterr().err
