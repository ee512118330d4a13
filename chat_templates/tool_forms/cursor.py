"""Reads text that comes in pieces: steps that wait for more where what is there does not decide.

A step is a generator: `found = yield from cursor.literal("{")`. It yields each time it needs more text, and is resumed
when there is some, or when the text has ended (`ended`).
"""

import re
from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")
Step = Generator[None, None, T]
SPACE = " \t\r\n"
MARKS = "\udc00-\udcff"
"""As a range of a pattern: characters that stand for tokens in what is read; no text can hold them."""

LONGEST_NAME = 256
NAME = re.compile(rf"[{SPACE}]*[^{SPACE}{MARKS}]{{0,{LONGEST_NAME}}}[{SPACE}]*")
"""What may be a name, or the beginning of one."""


def is_mark(char: str) -> bool:
    """Whether a character stands for a token."""
    return "\udc00" <= char <= "\udcff"


class Cursor:
    """The text so far, and how much of it has been read. `is_quoted`: whether what was read ends within quotes."""

    def __init__(self) -> None:
        self.is_quoted = False
        self.text = ""
        self.at = 0
        self.ended = False

    @property
    def rest(self) -> str:
        """What has not been read."""
        return self.text[self.at :]

    def forget(self) -> None:
        """Lets go of what has been read."""
        self.text, self.at = self.text[self.at :], 0

    def more(self) -> Step[bool]:
        """Waits for more text; False once there is none to come."""
        before = len(self.text)
        while len(self.text) == before and not self.ended:
            yield
        return len(self.text) > before

    def space(self) -> Step[None]:
        """Reads white space, to the first character that is none."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in SPACE:
                self.at += 1
            if self.at < len(self.text) or not (yield from self.more()):
                return

    def literal(self, *options: str) -> Step[str]:
        """Reads the longest of `options` that comes next; "" if none does."""
        while True:
            rest = self.rest
            if not self.ended and any(len(rest) < len(option) and option.startswith(rest) for option in options):
                yield from self.more()
                continue
            found = max((option for option in options if rest.startswith(option)), key=len, default="")
            self.at += len(found)
            return found

    def until(self, stops: tuple[str, ...], emit: Callable[[str], None]) -> Step[str]:
        """Emits what comes before the first of `stops` and reads that; "" if the text ends first.

        Of several that begin at one place the longest counts.
        """
        longest_first = sorted(stops, key=len, reverse=True)
        found_by = re.compile("|".join(map(re.escape, longest_first)))
        beginnings = sorted({stop[:end] for stop in stops for end in range(1, len(stop))}, key=len, reverse=True)
        held_by = re.compile("(?:" + "|".join(map(re.escape, beginnings)) + r")\Z") if beginnings else None
        while True:
            found = found_by.search(self.text, self.at)
            if found is not None and not self._may_grow(found, longest_first):
                self._emit(found.start(), emit)
                self.at += len(found[0])
                return found[0]
            end = len(self.text)
            if found is not None:
                end = found.start()
            elif held_by is not None and not self.ended and (held := held_by.search(self.text, self.at)):
                end = held.start()
            self._emit(end, emit)
            if not (yield from self.more()) and found is None:
                self._emit(len(self.text), emit)
                return ""

    def json(self, emit: Callable[[str], None]) -> Step[bool]:
        """Reads a JSON object or list, emitting its text; whether it ended, before a token outside its strings.

        Soundness is not looked at.
        """
        depth, is_escaped = 0, False
        while True:
            for index in range(self.at, len(self.text)):
                char = self.text[index]
                if is_escaped:
                    is_escaped = False
                elif self.is_quoted:
                    is_escaped = char == "\\"
                    self.is_quoted = char != '"'
                elif char == '"':
                    self.is_quoted = True
                elif char in "{[":
                    depth += 1
                elif char in "}]":
                    depth -= 1
                    if depth <= 0:
                        self._emit(index + 1, emit)
                        return True
                elif is_mark(char):
                    self._emit(index, emit)
                    return False
            self._emit(len(self.text), emit)
            if not (yield from self.more()):
                self.is_quoted = False
                return False

    def _may_grow(self, found: "re.Match[str]", stops: list[str]) -> bool:
        """Whether a longer stop than the one found may still come at its place."""
        tail = self.text[found.start() :]
        return not self.ended and any(len(stop) > len(tail) and stop.startswith(tail) for stop in stops)

    def _emit(self, end: int, emit: Callable[[str], None]) -> None:
        if end > self.at:
            text, self.at = self.text[self.at : end], end
            emit(text)
