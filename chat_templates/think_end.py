"""Finds the end of the thinking in token ids as they come, whether its tag is one token or ordinary text."""

from collections import deque
from typing import Protocol

from chat_templates.detokenizer import Detokenizer


class ThinkEnd(Protocol):
    """Watches one generation. `token_id` is the tag's, None where it is ordinary text."""

    token_id: int | None

    def feed(self, token_id: int) -> int:
        """How many tokens, this one the last of them, hold the end tag; 0 as long as it is not whole."""

    def is_exact(self) -> bool:
        """Whether nothing stood after the tag in the token that completed it."""


class TokenEnd:
    """The end tag as a token."""

    def __init__(self, token_id: int) -> None:
        self.token_id: int | None = token_id

    def feed(self, token_id: int) -> int:
        """1 for the tag."""
        return int(token_id == self.token_id)

    def is_exact(self) -> bool:
        """It is."""
        return True


class TextEnd:
    """The end tag as text, which tokens may cut anywhere."""

    token_id: int | None = None

    def __init__(self, tag: str, detokenizer: Detokenizer) -> None:
        self._tag = tag
        self._detokenizer = detokenizer
        self._recent: deque[str] = deque(maxlen=4 * len(tag))  # the texts of single tokens, some of them empty

    def feed(self, token_id: int) -> int:
        """How many tokens the tag took."""
        self._recent.append(self._detokenizer.feed([token_id]))
        text = "".join(self._recent)
        if self._tag not in text:
            return 0
        start = text.index(self._tag)
        before = 0
        for index, piece in enumerate(self._recent):
            before += len(piece)
            if before > start:
                return len(self._recent) - index
        raise AssertionError("the tag is in the text of the tokens")

    def is_exact(self) -> bool:
        """Whether the text ends with the tag."""
        return "".join(self._recent).endswith(self._tag)


class MixedEnd:
    """The end tag as a text between two tokens."""

    token_id: int | None = None

    def __init__(self, first: int, text: str, last: int, detokenizer: Detokenizer) -> None:
        self._first, self._text, self._last = first, text, last
        self._detokenizer = detokenizer
        self._tokens = 0  # of the tag, so far
        self._read = ""

    def feed(self, token_id: int) -> int:
        """How many tokens the tag took."""
        if token_id == self._first:
            self._detokenizer.flush()
            self._tokens, self._read = 1, ""
        elif self._tokens:
            self._tokens += 1
            if token_id == self._last:
                tokens, self._tokens = self._tokens, 0
                return tokens if self._read == self._text else 0
            self._read += self._detokenizer.feed([token_id])
            if not self._text.startswith(self._read):
                self._tokens = 0
        return 0

    def is_exact(self) -> bool:
        """It is: a token ends it."""
        return True
