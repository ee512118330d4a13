"""Finds out which request makes steps fail: parts of those that ran in a failed step run without the others.

Counts requests and tokens only. What runs and what is parked is the loop's part.
"""

from collections import deque
from collections.abc import Sequence

CLEARED_AFTER = 33
"""Tokens that a request has to draw to be cleared: a failed round of several steps had at most 32 ahead of it."""


class Blame:
    """One search at a time. `on_trial` may run now, beside those that are cleared."""

    def __init__(self) -> None:
        self.on_trial: list[str] = []
        self._groups: deque[list[str]] = deque()
        self._missing: dict[str, int] = {}  # of those on trial: tokens until they are cleared

    @property
    def active(self) -> bool:
        """Whether a search goes on."""
        return bool(self.on_trial or self._groups)

    def failed(self, ran: Sequence[str]) -> str | None:
        """A step failed in which `ran` were computed. The one to blame, which has left the search; None if there still
        are several, of which the first half is on trial next.
        """
        suspects = [one for one in self.on_trial if one in ran] or list(ran)
        self._groups = deque([one for one in group if one not in suspects] for group in self._groups)
        self.on_trial, self._missing = [], {}
        if len(suspects) <= 1:
            return suspects[0] if suspects else None
        half = len(suspects) // 2
        self._groups.extendleft([suspects[half:], suspects[:half]])
        return None

    def drew(self, request_id: str, tokens: int) -> None:
        """A request has drawn so many tokens."""
        if request_id in self._missing:
            self._missing[request_id] -= tokens
            if self._missing[request_id] <= 0:
                self.left(request_id)

    def left(self, request_id: str) -> None:
        """A request is cleared, or has ended."""
        if self._missing.pop(request_id, None) is not None:
            self.on_trial.remove(request_id)
        elif self._groups:
            self._groups = deque([one for one in group if one != request_id] for group in self._groups)

    def next_group(self) -> list[str]:
        """The next on trial, once the last ones are cleared; nothing while they are not, or where none are left."""
        while not self.on_trial and self._groups:
            self.on_trial = self._groups.popleft()
            self._missing = dict.fromkeys(self.on_trial, CLEARED_AFTER)
            if self.on_trial:
                return self.on_trial
        return []
