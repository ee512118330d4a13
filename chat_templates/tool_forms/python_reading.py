"""Reads calls as Python writes them."""

import re

from chat_templates.tool_forms.cursor import LONGEST_NAME, Step
from chat_templates.tool_forms.form import PythonCalls
from chat_templates.tool_forms.reading import NotACallError, Reading
from chat_templates.tool_forms.values import python_call

_HEAD = re.compile(r"[A-Za-z_][\w.\-]*\(")


class PythonReading(Reading[PythonCalls]):
    """Each is told once it is whole."""

    def section(self) -> Step[None]:
        """As in Reading."""
        form = self._form
        cursor = self.cursor
        yield from cursor.space()
        is_list = bool((yield from cursor.literal("[")))
        if not is_list and not form.open:
            raise NotACallError
        while True:
            yield from cursor.space()
            name, arguments = yield from self._python_call()
            self._start(name)
            self._argue(arguments)
            yield from cursor.space()
            if (yield from cursor.literal(",", "]")) == "]":
                is_list = False
            is_closed = not is_list and (yield from self._closes(form.close))
            self._end(complete=True)
            if is_closed:
                return

    def _python_call(self) -> Step[tuple[str, str]]:
        """The call that comes next, once all of it is there."""
        cursor = self.cursor
        scan = self._ahead = _PythonScan()
        end = scan.feed(cursor.rest)
        while end == 0 and (yield from cursor.more()):
            end = scan.feed(cursor.rest)
        self._ahead = cursor
        call = python_call(self._spelled(cursor.rest[:end])) if end else None
        if call is None:
            raise NotACallError
        cursor.at += end or 0
        return call


class _PythonScan:
    """Finds the bracket that ends a call."""

    def __init__(self) -> None:
        self._seen = 0
        self._depth = 0
        self._quote = ""
        self._is_escaped = False

    @property
    def is_quoted(self) -> bool:
        """Whether the text so far ends within quotes."""
        return bool(self._quote)

    def feed(self, text: str) -> int | None:
        """Where the call in `text`, which has grown, ends; 0 where that is to come; None where there is none."""
        head = _HEAD.match(text)
        if head is None:
            is_name = text.replace(".", "").replace("-", "").isidentifier() and len(text) < LONGEST_NAME
            return 0 if is_name or not text else None
        for index in range(max(self._seen, head.end() - 1), len(text)):
            if self._step(text[index]):
                return index + 1
        self._seen = len(text)
        return 0

    def _step(self, char: str) -> bool:
        if self._is_escaped:
            self._is_escaped = False
        elif self._quote:
            self._is_escaped = char == "\\"
            self._quote = "" if char == self._quote else self._quote
        elif char in "\"'":
            self._quote = char
        elif char in "([{":
            self._depth += 1
        elif char in ")]}":
            self._depth -= 1
            return self._depth == 0
        return False
