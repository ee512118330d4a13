"""How often pages are counted: rarely while requests run, soon when they have ended."""

import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from engine.messages import Stats

COST = 0.01
"""Seconds that a count takes on the clock of these tests."""


class Pages:
    """A page counter whose every count is another one and moves the clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.busy = True
        self.counted = 0

    def has_work(self) -> bool:
        return self.busy

    def requests(self) -> tuple[int, int]:
        return int(self.busy), 0

    def preemptions(self) -> int:
        return 0

    def count(self) -> tuple[Any, ...]:
        self.now += COST
        self.counted += 1
        return (self.counted,)


class Sent(list[Stats]):
    def send(self, message: Stats) -> None:
        self.append(message)


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pages]:
    pages = Pages()
    monkeypatch.setattr(time, "monotonic", lambda: pages.now)
    monkeypatch.setattr(time, "thread_time", lambda: pages.now)
    yield pages
    monkeypatch.undo()


def _sender(pages: Pages, sent: Sent) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from engine.stats import StatsSender, StepCounts
    return StatsSender(pages, sent, StepCounts())  # type: ignore[arg-type]


def test_a_busy_engine_counts_for_a_five_hundredth_of_its_time(pages: Pages) -> None:
    sent = Sent()
    stats = _sender(pages, sent)
    for _ in range(2000):
        pages.now += 0.02
        stats.changed()
        stats.send_if_due()
    assert len(sent) == pages.counted == pytest.approx(40 / (500 * COST), abs=1)


def test_an_engine_that_has_become_idle_tells_it_soon(pages: Pages) -> None:
    sent = Sent()
    stats = _sender(pages, sent)
    stats.changed()
    stats.send_if_due()
    pages.now += 1.0
    stats.changed()
    stats.send_if_due()
    assert [message.running for message in sent] == [1]
    pages.busy = False
    assert stats.seconds_left() == 0
    stats.send_if_due()
    assert [message.running for message in sent] == [1, 0]
    assert stats.seconds_left() is None
