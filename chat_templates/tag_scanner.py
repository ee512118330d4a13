"""Finds tags that are ordinary text in text as it comes; what they mean is the parser's to know."""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Found(NamedTuple):
    """Some text, or a whole tag."""

    text: str
    is_tag: bool


class TagScanner:
    """Holds back the end of the text as long as it may become one of `tags`."""

    def __init__(self, tags: Sequence[str]) -> None:
        by_length = sorted(tags, key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, by_length)) + ")")
        beginnings = {tag[:length] for tag in tags for length in range(1, len(tag))}
        longest_first = sorted(beginnings, key=len, reverse=True)
        self._beginning = re.compile("(?:" + "|".join(map(re.escape, longest_first)) + r")\Z")
        self._held = ""

    def feed(self, text: str) -> Iterator[Found]:
        """What is certain now, in order."""
        *before, last = self._split.split(self._held + text)
        beginning = self._beginning.search(last)
        certain = last if beginning is None else last[: beginning.start()]
        self._held = last[len(certain) :]
        for index, piece in enumerate((*before, certain)):
            if piece:
                yield Found(piece, is_tag=index % 2 == 1)

    def flush(self) -> str:
        """What was held back, which was no tag."""
        held, self._held = self._held, ""
        return held
