"""Finds a thinking that opens again in the answer, or at all where none was asked for."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from chat_templates.think_end import ThinkEnd

CODE_FENCE = "```"


class ThinkAgain(Protocol):
    """Watches the answer of one generation. `closing` are the ids that end such a thinking for the model."""

    closing: tuple[int, ...]

    def find(self, generated: Sequence[int], since: int, ids: Sequence[int]) -> int | None:
        """How many of `ids` have been read when thinking is open; None where it is not. `generated` are all that came
        before them, the answer from `since` on.
        """


class ChannelAgain:
    """Where every message has a header, one of thinking may follow any other."""

    def __init__(self, header: ThinkEnd, closing: tuple[int, ...]) -> None:
        self.closing = closing
        self._header = header

    def find(self, generated: Sequence[int], since: int, ids: Sequence[int]) -> int | None:
        """As in ThinkAgain; what came before does not matter."""
        del generated, since
        return next((index for index, token_id in enumerate(ids, 1) if self._header.feed(token_id)), None)


class AnswerText(NamedTuple):
    """What an answer says before a tag: `spelled` by a format, where `calls_open` begins tool calls, and `hidden` tags
    say nothing.
    """

    spelled: Callable[[Sequence[int]], str]
    calls_open: str
    hidden: tuple[str, ...]

    def begins_line(self, ids: Sequence[int], tag: str = "") -> bool:
        """Whether what follows these ids, or a tag at their end, stands where thinking may open."""
        text = self.spelled(ids)
        text = text.rpartition(tag)[0] if tag else text
        if not self.calls_open or self.calls_open in text or text.count(CODE_FENCE) % 2:
            return False
        for hidden in self.hidden:
            text = text.replace(hidden, "")
        return not text.rpartition("\n")[2].strip()


class TagAgain:
    """The opening tag, at the beginning of a line: elsewhere, in a block of code and after a tool call an answer has it
    as text. `tag_id` is that of the tag as a token; None: `watch` makes a watch for its end.
    """

    def __init__(
        self, tag: str, tag_id: int | None, watch: Callable[[], ThinkEnd], text: AnswerText, closing: tuple[int, ...]
    ) -> None:
        self.closing = closing
        self._tag = tag
        self._tag_id = tag_id
        self._make_watch = watch
        self._watch = watch()
        self._text = text

    def find(self, generated: Sequence[int], since: int, ids: Sequence[int]) -> int | None:
        """As in ThinkAgain."""
        if self._tag_id is None:
            return self._find_text(generated, since, ids)
        if self._tag_id not in ids:  # nearly always
            return None
        for index, token_id in enumerate(ids):
            if token_id == self._tag_id and self._text.begins_line([*generated[since:], *ids[:index]]):
                return index + 1
        return None

    def _find_text(self, generated: Sequence[int], since: int, ids: Sequence[int]) -> int | None:
        for index, token_id in enumerate(ids, 1):
            if self._watch.feed(token_id):
                self._watch = self._make_watch()
                if self._text.begins_line([*generated[since:], *ids[:index]], self._tag):
                    return index
        return None
