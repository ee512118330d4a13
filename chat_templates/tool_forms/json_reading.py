"""Reads calls as JSON: `{"name": …, "arguments": {…}}`."""

import json
import re
from collections.abc import Callable

from chat_templates.tool_forms.cursor import Cursor, Step
from chat_templates.tool_forms.form import JsonCalls
from chat_templates.tool_forms.reading import NotACallError, Reading
from chat_templates.tool_forms.values import whole_call

_NAME = r""""(?: [^"\\\x00-\x1f] | \\["\\/bfnrt] | \\u[0-9a-fA-F]{4} )+" """
_ID = r""""tool_call_id" \s* : \s* "[^"\\]*" \s* , \s*"""
_HEAD = re.compile(
    rf"""\{{ \s* (?:{_ID})? "(?:tool_)?name" \s* : \s* ({_NAME}) \s* , \s*
    "(?:arguments|parameters)" \s* : \s* (?=\{{)""",
    re.VERBOSE,
)
_NAME_FIRST = re.compile(rf"\{{ \s* ({_NAME}) \s* : \s* (?=\{{)", re.VERBOSE)
_LONGEST_HEAD = 512  # characters; bounds how much is searched again with every token
_FIRST_KEYS = ('"name"', '"type"')


class JsonReading(Reading[JsonCalls]):
    """Arguments are told as they come where the name stands before them."""

    def section(self) -> Step[None]:
        """As in Reading."""
        form = self._form
        cursor = self.cursor
        yield from cursor.space()
        is_list = form.is_list and bool((yield from cursor.literal("[")))
        while True:
            yield from cursor.space()
            complete = yield from self._json_call(form)
            if is_list and complete:
                yield from cursor.space()
                if (yield from cursor.literal(",", "]")) == ",":
                    self._end(complete=True)
                    continue
            is_closed = yield from self._closes(form.close)
            self._end(complete=complete)
            if is_closed:
                return
            if form.open or not (yield from cursor.literal(form.between.strip())):
                raise NotACallError

    def _json_call(self, form: JsonCalls) -> Step[bool]:
        """One object; whether it is whole. A call in another order of keys is told once it is."""
        cursor = self.cursor
        begins = _NAME_FIRST if form.by_name else _HEAD
        if not cursor.rest.startswith("{") or not (self._form.open or (yield from self._begins_with_a_key())):
            raise NotACallError
        look, whole = self._look_ahead()
        while True:
            head = begins.match(cursor.text, cursor.at, cursor.at + _LONGEST_HEAD)
            if head is not None:
                self._ahead = cursor
                cursor.at = head.end()
                return (yield from self._headed_call(json.loads(head[1])))
            if look():
                break
            if not (yield from cursor.more()):
                raise NotACallError
        self._ahead = cursor
        call = None if form.by_name else whole_call(whole[0])
        if call is None:
            raise NotACallError
        cursor.at += len(whole[0])
        self._start(call[0])
        self._argue(call[1])
        return True

    def _begins_with_a_key(self) -> Step[bool]:
        """Whether an object without a tag before it looks like a call; so that other answers do not wait."""
        cursor = self.cursor
        start = cursor.at
        cursor.at += 1
        yield from cursor.space()
        found = yield from cursor.literal(*_FIRST_KEYS)
        cursor.at = start
        return bool(found)

    def _look_ahead(self) -> tuple[Callable[[], bool], list[str]]:
        """Looks, without reading, whether a whole object is there; then it is in the list."""
        whole: list[str] = []
        texts: list[str] = []
        ahead = self._ahead = Cursor()
        steps = ahead.json(texts.append)
        first = self.cursor.at

        def look() -> bool:
            ahead.text += self.cursor.text[first + len(ahead.text) :]
            try:
                next(steps)
            except StopIteration:
                whole.append("".join(texts))
                return True
            return False

        return look, whole

    def _headed_call(self, name: str) -> Step[bool]:
        """The arguments as they come, and the brace after them."""
        cursor = self.cursor
        self._start(name)
        complete = yield from cursor.json(self._argue)
        if complete:
            yield from cursor.space()
            if (yield from cursor.literal("}")):
                self._read()
            else:
                cursor.at = 0
        return complete
