"""Stop strings over text that arrives in pieces: nothing of a stop string is ever shown, nothing else is lost.

An automaton after Aho and Corasick, "Efficient string matching" (1975): each character of the text costs about the same
however many the stop strings are and however much of them they share.
"""

from collections.abc import Sequence
from functools import lru_cache

ROOT = 0


class StopStrings:
    """Passes text through until the first of `stops` is complete; `hit` tells that it was, and `reached`
    which. `is_shown`: it is passed too.

    The outcome is the same however the text is cut into pieces. Where several are complete at once, the longest counts.
    """

    def __init__(self, stops: Sequence[str], *, is_shown: bool = False) -> None:
        self.reached: str | None = None
        self._is_shown = is_shown
        self._held = ""
        self._state = ROOT
        self._automaton = _automaton(tuple(stops)) if stops else None

    def feed(self, text: str) -> str:
        """The text that is safe to show; an end that may grow into a stop string is held back."""
        automaton = self._automaton
        if automaton is None:
            return text
        if self.hit:
            return ""
        before = len(self._held)
        text = self._held + text
        for end in range(before, len(text)):
            self._state = automaton.next(self._state, text[end])
            if length := automaton.longest[self._state]:
                self.reached, self._held = text[end + 1 - length : end + 1], ""
                return text[: end + 1 if self._is_shown else end + 1 - length]
        shown = len(text) - automaton.depth[self._state]
        self._held = text[shown:]
        return text[:shown]

    @property
    def hit(self) -> bool:
        """Whether a stop string was complete."""
        return self.reached is not None

    def would_end(self, text: str) -> bool:
        """Whether `text`, should it come next, completes a stop string."""
        automaton, state = self._automaton, self._state
        if automaton is None or self.hit:
            return False
        for character in text:
            state = automaton.next(state, character)
            if automaton.longest[state]:
                return True
        return False

    def finish(self) -> str:
        """What was held back, once no more text comes."""
        held, self._held = self._held, ""
        return held


class _Automaton:
    """States are prefixes of the stop strings: after any text, that of its longest end which is one.

    By state: `depth` is its length, `longest` that of the longest stop string that it ends with, 0 if there is none.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.depth = [0]
        self.longest = [0]
        self._edges: dict[int, int] = {}  # by `_key`; one table is smaller than one for each state
        steps = [(ROOT, "")]  # by state: the state before it, and the character that leads from there
        for stop in stops:
            self.longest[self._add(stop, steps)] = len(stop)
        self._shorter = [ROOT] * len(steps)  # the state of the longest end that is another state
        self._link(steps)

    def next(self, state: int, character: str) -> int:
        """The state after one more character. Takes constant time on average over a text."""
        edges = self._edges
        while (after := edges.get(_key(state, character))) is None:
            if state == ROOT:
                return ROOT
            state = self._shorter[state]
        return after

    def _add(self, stop: str, steps: list[tuple[int, str]]) -> int:
        state = ROOT
        for character in stop:
            after = self._edges.setdefault(_key(state, character), len(steps))
            if after == len(steps):
                steps.append((state, character))
                self.depth.append(self.depth[state] + 1)
                self.longest.append(0)
            state = after
        return state

    def _link(self, steps: list[tuple[int, str]]) -> None:
        """The shallow ones first, for they are the shorter states of deeper ones."""
        for state in sorted(range(1, len(steps)), key=self.depth.__getitem__):
            before, character = steps[state]
            if before != ROOT:
                self._shorter[state] = self.next(self._shorter[before], character)
            self.longest[state] = self.longest[state] or self.longest[self._shorter[state]]


def _key(state: int, character: str) -> int:
    return state << 21 | ord(character)


@lru_cache(maxsize=16)
def _automaton(stops: tuple[str, ...]) -> _Automaton:
    """The same for all choices of a request; a large one takes milliseconds to make."""
    return _Automaton(stops)
