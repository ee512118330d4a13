"""Finds tags that are ordinary text in text as it comes; what they mean is the parser's to know."""

import re
from collections.abc import Sequence


class TagScanner:
    """Holds back the end of the text as long as it may become one of `tags`."""

    def __init__(self, tags: Sequence[str]) -> None:
        by_length = sorted(tags, key=len, reverse=True)
        self._tag = re.compile("|".join(map(re.escape, by_length)))
        beginnings = {tag[:length] for tag in tags for length in range(1, len(tag))}
        longest_first = sorted(beginnings, key=len, reverse=True)
        self._beginning = re.compile("(?:" + "|".join(map(re.escape, longest_first)) + r")\Z")
        self._held = ""

    def take(self, text: str) -> tuple[str, str, str]:
        """What is certain to stand before the first tag; that tag, and what comes after it, if there is one by now."""
        text, self._held = self._held + text, ""
        found = self._tag.search(text)
        if found is not None:
            return text[: found.start()], found[0], text[found.end() :]
        beginning = self._beginning.search(text)
        certain = text if beginning is None else text[: beginning.start()]
        self._held = text[len(certain) :]
        return certain, "", ""

    def flush(self) -> str:
        """What was held back, which was no tag."""
        held, self._held = self._held, ""
        return held
