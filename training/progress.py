"""A stage's progress bar on a terminal, and nothing elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def shown(name: str, total: int, done: int, *, hidden: bool = False) -> Iterator[Callable[[int], None]]:
    """A bar at `done` of `total`; what it gives is told how many are done. `hidden`: nothing on a terminal either."""
    columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=hidden or not sys.stdout.isatty()) as progress:
        bar = progress.add_task(name, total=total, completed=done)
        yield lambda now: progress.update(bar, completed=min(now, total))
