"""Reads a section of tool calls as it comes, in any of the forms; knows nothing of tokens or of the text around it.

A call has started once its name is known and its arguments begin. What is read of a call that never starts is text, as
is what follows a call and belongs to none.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from chat_templates.events import Event, ToolCallArguments, ToolCallEnd, ToolCallStart
from chat_templates.tokens import replace_surrogates
from chat_templates.tool_call import whole_call
from chat_templates.tool_forms.cursor import SPACE, Cursor, Step
from chat_templates.tool_forms.form import CallForm, JsonCalls, NamedJsonCalls, PythonCalls, TaggedCalls
from chat_templates.tool_forms.values import as_json, dumped, is_text, parameters_of, python_call, types_of

_NAME = r""""(?: [^"\\\x00-\x1f] | \\["\\/bfnrt] | \\u[0-9a-fA-F]{4} )+" """
_HEAD = re.compile(
    rf"""\{{ \s* "name" \s* : \s* ({_NAME}) \s* , \s* "(?:arguments|parameters)" \s* : \s* (?=\{{)""", re.VERBOSE
)
_PYTHON_HEAD = re.compile(r"[A-Za-z_][\w.\-]*\(")
_LONGEST_HEAD = 512  # characters; bounds how much is searched again with every token
_LONGEST_NAME = 256


class SectionReader:
    """Reads one section; `open` has been read already.

    `tools`: the schemas of the tools' arguments by name. `first`: the index of its first call.

        reader = SectionReader(form, tools, 0, new_call_id)
        events += reader.feed(text)      # until reader.is_closed: `rest` is what comes after the section
        events += reader.finish()        # where the generation, or the turn, ends in it

    `lost` is the text, so far, that belongs to no call.
    """

    def __init__(self, form: CallForm, tools: Mapping[str, Any], first: int, call_id: Callable[[], str]) -> None:
        self.is_closed = False
        self.rest = ""
        self.lost = ""
        self.calls = first
        self._form = form
        self._tools = tools
        self._call_id = call_id
        self._cursor = Cursor()
        self._events: list[Event] = []
        self._steps = self._section()
        next(self._steps)

    def feed(self, text: str) -> list[Event]:
        """What this text adds."""
        self._cursor.text += text
        self._run()
        return self._take()

    def finish(self) -> list[Event]:
        """The last events; what began no call is in `lost`."""
        self._cursor.ended = True
        self._run()
        return self._take()

    def _run(self) -> None:
        if self.is_closed:
            return
        try:
            next(self._steps)
        except StopIteration:
            self.is_closed = True
            self.rest = self._cursor.rest

    def _take(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _section(self) -> Step[None]:
        yield
        match self._form:
            case JsonCalls():
                yield from self._json_calls(self._form)
            case NamedJsonCalls():
                yield from self._named_calls(self._form)
            case TaggedCalls():
                yield from self._tagged_calls(self._form)
            case PythonCalls():
                yield from self._python_calls(self._form)

    # What all forms share.

    def _start(self, name: str) -> None:
        self._read()
        self._events.append(ToolCallStart(self.calls, self._call_id(), replace_surrogates(name)))

    def _argue(self, text: str) -> None:
        self._read()
        self._events.append(ToolCallArguments(self.calls, replace_surrogates(text)))

    def _end(self, *, complete: bool) -> None:
        self._events.append(ToolCallEnd(self.calls, complete))
        self.calls += 1
        self._read()

    def _read(self) -> None:
        """What the cursor has read is told of, or belongs to the tags."""
        self._cursor.forget()

    def _lose(self, close: str) -> Step[None]:
        """What was read and not told of is text, and what comes before the section's end."""
        cursor = self._cursor
        self.lost += cursor.text[: cursor.at]
        self._read()
        if close:
            texts: list[str] = []
            yield from cursor.until((close,), texts.append)
            self.lost += "".join(texts)
        else:
            while (yield from cursor.more()):
                pass
            self.lost += cursor.rest
            cursor.at = len(cursor.text)
        self._read()

    def _closes(self, close: str) -> Step[bool]:
        """Whether the section's end comes next, after white space, or all text ends here."""
        cursor = self._cursor
        yield from cursor.space()
        found = bool(close) and bool((yield from cursor.literal(close)))
        found = found or (cursor.ended and not cursor.rest)
        if found:
            self._read()
        return found

    # {"name": …, "arguments": {…}}

    def _json_calls(self, form: JsonCalls) -> Step[None]:
        cursor = self._cursor
        yield from cursor.space()
        is_list = bool((yield from cursor.literal("[")))
        while True:
            yield from cursor.space()
            if not cursor.rest.startswith("{") or not (yield from self._json_call()):
                yield from self._lose(form.close)
                return
            if is_list:
                yield from cursor.space()
                if (yield from cursor.literal(",", "]")) == ",":
                    self._read()
                    continue
                self._read()
            if (yield from self._closes(form.close)):
                return
            if is_list or form.open or not (yield from cursor.literal(form.between.strip())):
                yield from self._lose(form.close)
                return

    def _json_call(self) -> Step[bool]:
        """One object; False where it is no call."""
        cursor = self._cursor
        whole: list[str] = []
        reading = self._cursor_copy_reader(whole)
        while True:
            head = _HEAD.match(cursor.text, cursor.at, cursor.at + _LONGEST_HEAD)
            if head is not None:
                cursor.at = head.end()
                return (yield from self._headed_call(json.loads(head[1])))
            if reading():
                break
            if not (yield from cursor.more()):
                return False
        call = whole_call(whole[0], ("arguments", "parameters"))
        if call is None:
            return False
        cursor.at += len(whole[0])
        self._start(call[0])
        self._argue(call[1])
        self._end(complete=True)
        return True

    def _cursor_copy_reader(self, whole: list[str]) -> Callable[[], bool]:
        """Whether a whole object is there, looked at without reading it; then it is in `whole`."""
        ahead = Cursor()
        texts: list[str] = []
        steps = ahead.json(texts.append)

        def look() -> bool:
            seen = len(ahead.text)
            ahead.text += self._cursor.text[self._cursor.at + seen :]
            try:
                next(steps)
            except StopIteration:
                whole.append("".join(texts))
                return True
            return False

        return look

    def _headed_call(self, name: str) -> Step[bool]:
        """The arguments as they come, and the brace after them."""
        cursor = self._cursor
        self._start(name)
        complete = yield from cursor.json(self._argue)
        self._end(complete=complete)
        yield from cursor.space()
        yield from cursor.literal("}")
        self._read()
        return True

    # NAME tag {…}

    def _named_calls(self, form: NamedJsonCalls) -> Step[None]:
        cursor = self._cursor
        is_first = True
        while True:
            yield from cursor.space()
            if form.call_open and not (yield from cursor.literal(form.call_open)):
                yield from self._lose(form.close)
                return
            if not form.call_open and not is_first and not (yield from cursor.literal(form.open)):
                yield from self._lose(form.close)
                return
            is_first = False
            if not (yield from self._named_call(form)):
                yield from self._lose(form.close)
                return
            if (yield from self._closes(form.close)):
                return

    def _named_call(self, form: NamedJsonCalls) -> Step[bool]:
        cursor = self._cursor
        name: list[str] = []
        stops = (form.name_end, form.id_open) if form.id_open else (form.name_end,)
        found = yield from cursor.until(stops, name.append)
        if found and found == form.id_open:
            found = yield from cursor.until((form.name_end,), lambda _: None)
        yield from cursor.space()
        called = _name_of("".join(name), form)
        if not found or not called or not cursor.rest.startswith("{"):
            return False
        self._start(called)
        complete = yield from cursor.json(self._argue)
        self._end(complete=complete)
        if form.call_close:
            yield from cursor.space()
            yield from cursor.literal(form.call_close.strip(SPACE))
            self._read()
        return True

    # Tags around each value

    def _tagged_calls(self, form: TaggedCalls) -> Step[None]:
        cursor = self._cursor
        while True:
            yield from cursor.space()
            if form.call_open and not (yield from cursor.literal(form.call_open)):
                yield from self._lose(form.close)
                return
            ended_by = yield from self._tagged_call(form)
            if ended_by is None:
                yield from self._lose(form.close)
                return
            if ended_by == form.close or (yield from self._closes(form.close)):
                return

    def _tagged_call(self, form: TaggedCalls) -> Step[str | None]:
        """One call; the tag that ended it, None where it is no call."""
        cursor = self._cursor
        parts: list[str] = []
        call_close = form.call_close or form.close
        ends = (form.name_end,) if form.name_end else (form.param_open, call_close)
        found = yield from cursor.until(ends, parts.append)
        name = "".join(parts).strip()
        if not found or not name or len(name) > _LONGEST_NAME or any(space in name for space in SPACE):
            return None
        if found != form.name_end:
            cursor.at -= len(found)
        self._start(name)
        schema = self._tools.get(name, {})
        opening, complete = "{", False
        while True:
            yield from cursor.space()
            found = yield from cursor.literal(form.param_open, *dict.fromkeys((call_close, form.close)))
            if found != form.param_open:
                complete = bool(found)
                break
            self._argue(opening)
            opening = ", "
            if not (yield from self._parameter(form, schema)):
                break
        if complete:
            self._argue("{}" if opening == "{" else "}")
        self._end(complete=complete)
        return found or "none"

    def _parameter(self, form: TaggedCalls, schema: Any) -> Step[bool]:
        """A key and its value; whether it is whole."""
        cursor = self._cursor
        key: list[str] = []
        ends = (form.key_end, form.text_key_end) if form.text_key_end else (form.key_end,)
        found = yield from cursor.until(ends, key.append)
        if not found:
            return False
        name = "".join(key).strip()
        self._argue(f"{dumped(name)}: ")
        types = types_of(parameters_of(schema).get(name), schema)
        if found == form.text_key_end or (not form.text_key_end and is_text(types)):
            return (yield from self._text_value(form))
        raw: list[str] = []
        closed = yield from cursor.until(_closes_of(form), raw.append)
        if closed:
            self._argue(as_json("".join(raw), types))
        return self._closed_by(closed, form)

    def _text_value(self, form: TaggedCalls) -> Step[bool]:
        """Text as it comes, between quotes."""
        value = _Trimmed(trims=form.trims)

        def argue(text: str) -> None:
            if certain := value.feed(text):
                self._argue(dumped(certain)[1:-1])

        self._argue('"')
        closed = yield from self._cursor.until(_closes_of(form), argue)
        if closed:
            self._argue('"')
        return self._closed_by(closed, form)

    def _closed_by(self, closed: str, form: TaggedCalls) -> bool:
        """Models leave out the tag after the last value: then the next tag ends it, and is read again."""
        if closed and closed != form.param_close:
            self._cursor.at -= len(closed)
        return bool(closed)

    # NAME(KEY=VALUE, …)

    def _python_calls(self, form: PythonCalls) -> Step[None]:
        cursor = self._cursor
        yield from cursor.space()
        is_list = bool((yield from cursor.literal("[")))
        while True:
            yield from cursor.space()
            call = yield from self._python_call()
            if call is None:
                yield from self._lose(form.close)
                return
            self._start(call[0])
            self._argue(call[1])
            self._end(complete=True)
            yield from cursor.space()
            if (yield from cursor.literal(",", "]")) == "]":
                is_list = False
            self._read()
            if not is_list and (yield from self._closes(form.close)):
                return

    def _python_call(self) -> Step[tuple[str, str] | None]:
        """The call that comes next, once all of it is there."""
        cursor = self._cursor
        scan = _PythonScan()
        while True:
            end = scan.feed(cursor.rest)
            if end:
                text = cursor.rest[:end]
                call = python_call(text)
                if call is not None:
                    cursor.at += end
                return call
            if end is None or not (yield from cursor.more()):
                return None


class _PythonScan:
    """Finds the bracket that ends a call."""

    def __init__(self) -> None:
        self._seen = 0
        self._depth = 0
        self._quote = ""
        self._is_escaped = False

    def feed(self, text: str) -> int | None:
        """Where the call in `text`, which has grown, ends; 0 where that is to come; None where there is none."""
        head = _PYTHON_HEAD.match(text)
        if head is None:
            is_name = text.replace(".", "").replace("-", "").isidentifier() and len(text) < _LONGEST_NAME
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


class _Trimmed:
    """Text without a line break at its beginning, and one at its end held back."""

    def __init__(self, *, trims: bool) -> None:
        self._trims = trims
        self._is_first = True
        self._held = ""

    def feed(self, text: str) -> str:
        """What is certain."""
        if not self._trims:
            return text
        if self._is_first:
            text = text.removeprefix("\n")
            self._is_first = False
        text = self._held + text
        certain = text.removesuffix("\n")
        self._held = text[len(certain) :]
        return certain


def _closes_of(form: TaggedCalls) -> tuple[str, ...]:
    return tuple(dict.fromkeys((form.param_close, form.param_open, form.call_close or form.close)))


def _name_of(written: str, form: NamedJsonCalls) -> str:
    name = written.strip()
    if form.is_numbered:
        name = re.sub(r":\d+\Z", "", name)
    name = name.removeprefix(form.name_prefix)
    return name if len(name) <= _LONGEST_NAME and not any(space in name for space in SPACE) else ""
