"""Places in the engine whose reader stays away: a client that does not read its stream keeps none for long.

Its connection is another matter (`server.http.protocol`). Knows neither engine nor scheduler.
"""

from asyncio import get_running_loop
from collections.abc import Callable, Iterable
from dataclasses import dataclass

LOOK_SECONDS = 1.0
PATIENCE = 10
"""Looks: for so many a reader may be away, where nobody is in need of its place."""


@dataclass(eq=False)
class PlaceReader:
    """Who reads what comes of one place.

    `looks` is 0 while it waits for the engine, else one more than the looks since it went away with something to
    deliver. `stays_away` is called when it does, perhaps more than once.
    """

    looks: int = 0
    stays_away: Callable[[], None] | None = None


class AbsentReaders:
    """Looks after the readers of `places()`, each with whether its place is needed, as long as there are any."""

    def __init__(self, places: Callable[[], Iterable[tuple[PlaceReader, bool]]]) -> None:
        self._places = places
        self._is_looking = False

    def watch(self) -> None:
        """There are places."""
        if not self._is_looking:
            self._is_looking = True
            get_running_loop().call_later(LOOK_SECONDS, self._look)

    def hurry(self, reader: PlaceReader) -> None:
        """Its place is needed: if it is away, it stays away."""
        if reader.looks and reader.stays_away is not None:
            get_running_loop().call_soon(reader.stays_away)

    def _look(self) -> None:
        self._is_looking = False
        places = list(self._places())
        for reader, is_needed in places:
            if reader.looks:
                reader.looks += 1
                if is_needed or reader.looks > PATIENCE:
                    self.hurry(reader)
        if places:
            self.watch()
