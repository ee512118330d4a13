"""Tells when a thought goes round in circles, from its tokens alone."""

from collections import Counter, deque
from collections.abc import Sequence

from server.modes.repetition import Repetition

REACH = 4
"""Occurrences are counted within so many windows."""


class RepetitionWatch:
    """Reads the tokens of one thought. Of one that is shorter than the window they are only kept."""

    def __init__(self, rule: Repetition) -> None:
        self._rule = rule
        self._unread: list[int] = []
        self._last: deque[int] = deque(maxlen=rule.ngram)
        self._grams: deque[tuple[int, ...]] = deque()
        self._counts: Counter[tuple[int, ...]] = Counter()
        self._window: deque[bool] = deque()
        self._repeated = 0

    def feed(self, token_ids: Sequence[int]) -> int | None:
        """After how many of these tokens the thought is seen to repeat itself; None: after none of them."""
        self._unread += token_ids
        if len(self._grams) + len(self._unread) < self._rule.window:
            return None
        unread, self._unread = self._unread, []
        earlier = len(unread) - len(token_ids)
        for number, token_id in enumerate(unread, 1 - earlier):
            if self._repeats(token_id):
                return number
        return None

    def _repeats(self, token_id: int) -> bool:
        """Whether the tokens up to this one are a loop: most n-grams in the window stood often enough before."""
        rule = self._rule
        self._last.append(token_id)
        gram = tuple(self._last)
        repeated = self._counts[gram] >= rule.count - 1
        self._counts[gram] += 1
        self._grams.append(gram)
        self._window.append(repeated)
        self._repeated += repeated
        if len(self._window) > rule.window:
            self._repeated -= self._window.popleft()
        if len(self._grams) > REACH * rule.window:
            self._forget(self._grams.popleft())
        return len(self._window) == rule.window and self._repeated >= rule.share * rule.window

    def _forget(self, gram: tuple[int, ...]) -> None:
        self._counts[gram] -= 1
        if not self._counts[gram]:
            del self._counts[gram]
