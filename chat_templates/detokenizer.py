"""Text from generated ids as they come, in linear time; knows nothing of control tokens or of what the text means."""

import codecs
from collections.abc import Sequence
from typing import Protocol

from chat_templates.tokens import Vocabulary

_REPLACEMENT = "\ufffd"
_LONGEST_CHARACTER = 4  # bytes in UTF-8, hence tokens at most


class Detokenizer(Protocol):
    """Holds back a character until its last token is there."""

    def feed(self, token_ids: Sequence[int]) -> str:
        """The text that these ids complete."""

    def flush(self) -> str:
        """Ends the run of ids: what was held back, unfinished characters as U+FFFD; then starts afresh."""


class ByteDetokenizer:
    """For byte-level tokenizers: ids to bytes by table, bytes to text by an incremental UTF-8 decoder."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._token_bytes = vocabulary.token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token_ids: Sequence[int]) -> str:
        """The text that these ids complete."""
        return self._decoder.decode(b"".join(map(self._token_bytes, token_ids)))

    def flush(self) -> str:
        """The unfinished character as U+FFFD, or nothing."""
        return self._decoder.decode(b"", final=True)


class WindowDetokenizer:
    """For any other tokenizer: decodes the newest ids together with those before them, so that joints come out right.

    The window is the last emitted ids and the held-back ones. U+FFFD at its end means an unfinished character and is
    waited for, at most as long as a character can take; so bytes that are no UTF-8 at all cannot make it grow.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._decode = vocabulary.decode_window
        self._context: list[int] = []
        self._context_length = 0  # in characters
        self._held: list[int] = []

    def feed(self, token_ids: Sequence[int]) -> str:
        """The text that these ids complete."""
        texts = []
        for token_id in token_ids:
            self._held.append(token_id)
            text = self._decode(self._context + self._held)
            if not text.endswith(_REPLACEMENT) or len(self._held) >= _LONGEST_CHARACTER:
                texts.append(self._emit(text))
        return "".join(texts)

    def flush(self) -> str:
        """What was held back; unfinished characters as the tokenizer's own decoder shows them."""
        text = self._emit(self._decode(self._context + self._held)) if self._held else ""
        self._context, self._context_length = [], 0
        return text

    def _emit(self, text: str) -> str:
        new = text[self._context_length :]
        self._context, self._held = self._held, []
        self._context_length = len(self._decode(self._context))
        return new


def make_detokenizer(vocabulary: Vocabulary) -> Detokenizer:
    """The fast one where the tokenizer is byte-level, the general one elsewhere."""
    return ByteDetokenizer(vocabulary) if vocabulary.is_byte_level else WindowDetokenizer(vocabulary)
