"""Reads a section of tool calls as it comes, in any of the forms; knows nothing of tokens or of the text around it.

A call has started once its name is known and its arguments begin.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from chat_templates.events import Event, ToolCallArguments, ToolCallEnd, ToolCallStart
from chat_templates.tokens import replace_surrogates
from chat_templates.tool_forms.cursor import MARKS, SPACE, Cursor, Step
from chat_templates.tool_forms.form import BareKeyCalls, CallForm, JsonCalls, NamedJsonCalls, PythonCalls, TaggedCalls
from chat_templates.tool_forms.values import as_json, dumped, is_text, parameters_of, python_call, types_of, whole_call

_NAME = r""""(?: [^"\\\x00-\x1f] | \\["\\/bfnrt] | \\u[0-9a-fA-F]{4} )+" """
_ID = r""""tool_call_id" \s* : \s* "[^"\\]*" \s* , \s*"""
_HEAD = re.compile(
    rf"""\{{ \s* (?:{_ID})? "(?:tool_)?name" \s* : \s* ({_NAME}) \s* , \s*
    "(?:arguments|parameters)" \s* : \s* (?=\{{)""",
    re.VERBOSE,
)
_NAME_FIRST = re.compile(rf"\{{ \s* ({_NAME}) \s* : \s* (?=\{{)", re.VERBOSE)
_PYTHON_HEAD = re.compile(r"[A-Za-z_][\w.\-]*\(")
_LONGEST_HEAD = 512  # characters; bounds how much is searched again with every token
_LONGEST_NAME = 256
_DEEPEST = 64  # levels of an object without quotes
_MAYBE_NAME = re.compile(rf"[{SPACE}]*[^{SPACE}{MARKS}]{{0,{_LONGEST_NAME}}}[{SPACE}]*")
_FIRST_KEYS = ('"name"', '"type"')


class NotACallError(Exception):
    """What stands where a call should is none."""


class SectionReader:
    """Reads one section; `open` has been read already.

    `tools`: the schemas of the tools' arguments by name. `first`: the index of its first call. `spellings`: of the
    tokens, by the characters that stand for them (their numbers) in the form and in what is fed.

        reader = SectionReader(form, tools, 0, new_call_id)
        events += reader.feed(text)      # until reader.is_closed: `rest` is what comes after the section
        events += reader.finish()        # where the generation, or the turn, ends in it

    A section ends at its closing tag, or where something stands that is no call: `rest` begins with that.
    """

    def __init__(
        self,
        form: CallForm,
        tools: Mapping[str, Any],
        first: int,
        call_id: Callable[[], str],
        spellings: Mapping[int, str] | None = None,
    ) -> None:
        self.is_closed = False
        self.rest = ""
        self.calls = first
        self.has_started = False
        self.in_value = False
        self._form = form
        self._tools = tools
        self._call_id = call_id
        self._spellings = spellings or {}
        self._cursor = Cursor()
        self._ahead: Cursor | _PythonScan = self._cursor
        self._events: list[Event] = []
        self._steps = self._section()
        next(self._steps)

    @property
    def is_quoted(self) -> bool:
        """Whether what was fed ends within quotes, where any tag is text."""
        return self._cursor.is_quoted or self._ahead.is_quoted

    def feed(self, text: str) -> list[Event]:
        """What this text adds."""
        self._cursor.text += text
        self._run()
        return self._take()

    def finish(self) -> list[Event]:
        """The last events; what began no call is in `rest`."""
        self._cursor.ended = True
        self._run()
        return self._take()

    def _run(self) -> None:
        if self.is_closed:
            return
        try:
            next(self._steps)
        except (StopIteration, NotACallError) as end:
            cursor = self._cursor
            self.is_closed = True
            self.rest = cursor.rest if isinstance(end, StopIteration) else cursor.text

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
            case BareKeyCalls():
                yield from self._bare_calls(self._form)
            case PythonCalls():
                yield from self._python_calls(self._form)

    # What all forms share.

    def _start(self, name: str) -> None:
        self._read()
        self.has_started = True
        self._events.append(ToolCallStart(self.calls, self._call_id(), self._spelled(name)))

    def _argue(self, text: str) -> None:
        self._read()
        self._events.append(ToolCallArguments(self.calls, self._spelled(text)))

    def _end(self, *, complete: bool) -> None:
        self._events.append(ToolCallEnd(self.calls, complete))
        self.calls += 1

    def _spelled(self, text: str) -> str:
        """Text as clients see it."""
        return text if text.isascii() else replace_surrogates(text.translate(self._spellings))

    def _read(self) -> None:
        """What the cursor has read is told of, or belongs to the tags."""
        self._cursor.forget()

    def _closes(self, close: str) -> Step[bool]:
        """Whether the section's end comes next, after white space, or all text ends here."""
        cursor = self._cursor
        yield from cursor.space()
        found = bool(close) and bool((yield from cursor.literal(close)))
        found = found or (cursor.ended and not cursor.rest)
        if found:
            self._read()
        return found

    def _tag(self, tag: str) -> Step[None]:
        """Reads a tag that has to be there."""
        if tag and not (yield from self._cursor.literal(tag)):
            raise NotACallError

    def _name(self, stops: tuple[str, ...]) -> Step[tuple[str, str]]:
        """What may be a name, and the tag after it."""
        parts: list[str] = []

        def collect(text: str) -> None:
            parts.append(text)
            if not _MAYBE_NAME.fullmatch("".join(parts)):
                raise NotACallError

        found = yield from self._cursor.until(stops, collect)
        if not found:
            raise NotACallError
        return "".join(parts).strip(), found

    # {"name": …, "arguments": {…}}

    def _json_calls(self, form: JsonCalls) -> Step[None]:
        cursor = self._cursor
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
        cursor = self._cursor
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
        cursor = self._cursor
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
        first = self._cursor.at

        def look() -> bool:
            ahead.text += self._cursor.text[first + len(ahead.text) :]
            try:
                next(steps)
            except StopIteration:
                whole.append("".join(texts))
                return True
            return False

        return look, whole

    def _headed_call(self, name: str) -> Step[bool]:
        """The arguments as they come, and the brace after them."""
        cursor = self._cursor
        self._start(name)
        complete = yield from cursor.json(self._argue)
        if complete:
            yield from cursor.space()
            if (yield from cursor.literal("}")):
                self._read()
            else:
                cursor.at = 0
        return complete

    # NAME tag {…}

    def _named_calls(self, form: NamedJsonCalls) -> Step[None]:
        cursor = self._cursor
        is_first = True
        while True:
            yield from cursor.space()
            yield from self._tag(form.call_open or ("" if is_first else form.open))
            is_first = False
            yield from self._named_call(form)
            if (yield from self._closes(form.close)):
                return

    def _named_call(self, form: NamedJsonCalls) -> Step[None]:
        cursor = self._cursor
        written, found = yield from self._name((form.name_end, form.id_open) if form.id_open else (form.name_end,))
        if found == form.id_open:
            yield from self._name((form.name_end,))
        yield from cursor.space()
        name = _name_of(written, form)
        if not name or not cursor.rest.startswith("{"):
            raise NotACallError
        self._start(name)
        complete = yield from cursor.json(self._argue)
        if form.call_close:
            yield from cursor.space()
            yield from cursor.literal(form.call_close.strip(SPACE))
            self._read()
        self._end(complete=complete)

    # Tags around each value

    def _tagged_calls(self, form: TaggedCalls) -> Step[None]:
        cursor = self._cursor
        while True:
            yield from cursor.space()
            yield from self._tag(form.call_open)
            if (yield from self._tagged_call(form)) == form.close or (yield from self._closes(form.close)):
                return

    def _tagged_call(self, form: TaggedCalls) -> Step[str]:
        """One call; the tag that ended it."""
        cursor = self._cursor
        call_close = form.call_close or form.close
        ends = (form.name_end,) if form.name_end else (form.param_open, call_close)
        name, found = yield from self._name((form.index_open, *ends) if form.index_open else ends)
        if not name:
            raise NotACallError
        if form.index_open and found == form.index_open:
            _, found = yield from self._name(ends)
        if found != form.name_end:
            cursor.at -= len(found)
        self._start(name)
        schema = self._tools.get(self._spelled(name), {})
        opening = "{"
        while True:
            yield from cursor.space()
            found = yield from cursor.literal(form.param_open, *dict.fromkeys((call_close, form.close)))
            if found != form.param_open:
                break
            self._argue(opening)
            opening = ", "
            if not (yield from self._parameter(form, schema)):
                found = ""
                break
        if found:
            self._argue("{}" if opening == "{" else "}")
        self._end(complete=bool(found))
        if not found and not cursor.ended:
            raise NotACallError
        return found

    def _parameter(self, form: TaggedCalls, schema: Any) -> Step[bool]:
        """A key and its value; whether it is whole."""
        cursor = self._cursor
        key: list[str] = []
        ends = (form.key_end, form.text_key_end, *form.json_key_ends.values())
        found = yield from cursor.until(tuple(end for end in ends if end), key.append)
        if not found:
            return False
        name = self._spelled("".join(key)).strip()
        self._argue(f"{dumped(name)}: ")
        types = types_of(parameters_of(schema).get(name), schema)
        if found == form.text_key_end or (not form.text_key_end and is_text(types)):
            return (yield from self._text_value(form))
        raw: list[str] = []
        self.in_value = True
        closed = yield from cursor.until(_closes_of(form), raw.append)
        self.in_value = False
        if closed:
            self._argue(as_json(self._spelled("".join(raw)), types))
        return self._closed_by(closed, form)

    def _text_value(self, form: TaggedCalls) -> Step[bool]:
        """Text as it comes, between quotes."""
        value = _Trimmed(trims=form.trims)

        def argue(text: str) -> None:
            if certain := value.feed(text):
                self._argue(dumped(self._spelled(certain))[1:-1])

        self._argue('"')
        self.in_value = True
        closed = yield from self._cursor.until(_closes_of(form), argue)
        self.in_value = False
        if closed:
            self._argue('"')
        return self._closed_by(closed, form)

    def _closed_by(self, closed: str, form: TaggedCalls) -> bool:
        """Models leave out the tag after the last value: then the next tag ends it, and is read again."""
        if closed and closed != form.param_close:
            self._cursor.at -= len(closed)
        return bool(closed)

    # NAME{KEY:VALUE,…}

    def _bare_calls(self, form: BareKeyCalls) -> Step[None]:
        while True:
            yield from self._cursor.space()
            yield from self._tag(form.call_open)
            name, _ = yield from self._name(("{",))
            if not name:
                raise NotACallError
            self._start(name)
            root = self._tools.get(self._spelled(name), {})
            complete = yield from self._bare_object(form, root, root)
            self._end(complete=complete)
            if not complete and not self._cursor.ended:
                raise NotACallError
            if (yield from self._closes(form.close)):
                return

    def _bare_object(self, form: BareKeyCalls, schema: Any, root: Any, depth: int = 0) -> Step[bool]:
        """What follows the opening brace; whether it is whole."""
        cursor = self._cursor
        opening = "{"
        while True:
            yield from cursor.space()
            if (yield from cursor.literal("}")):
                self._argue("{}" if opening == "{" else "}")
                return True
            key = yield from self._bare_key(form)
            if key is None:
                return False
            self._argue(f"{opening}{dumped(key)}: ")
            opening = ", "
            if not (yield from self._bare_value(form, parameters_of(schema).get(key), root, depth)):
                return False
            yield from cursor.space()
            yield from cursor.literal(",")

    def _bare_key(self, form: BareKeyCalls) -> Step[str | None]:
        """A key, in quotes or without, and its colon; None where there is none."""
        cursor = self._cursor
        parts: list[str] = []
        if (yield from cursor.literal(form.quote)):
            if not (yield from cursor.until((form.quote,), parts.append)):
                return None
            yield from cursor.space()
            return self._spelled("".join(parts)) if (yield from cursor.literal(":")) else None
        found = yield from cursor.until((":", form.close, *"{}[],"), parts.append)
        return self._spelled("".join(parts)).strip() if found == ":" else None

    def _bare_value(self, form: BareKeyCalls, schema: Any, root: Any, depth: int) -> Step[bool]:
        cursor = self._cursor
        yield from cursor.space()
        found = yield from cursor.literal(form.quote, "{", "[")
        if found == form.quote:
            return (yield from self._bare_text(form))
        if found and depth == _DEEPEST:
            return False
        if found == "{":
            return (yield from self._bare_object(form, schema, root, depth + 1))
        if found == "[":
            return (yield from self._bare_list(form, schema, root, depth + 1))
        raw: list[str] = []
        stop = yield from cursor.until((*",}]", form.close), raw.append)
        cursor.at -= len(stop)
        if stop:
            types = types_of(schema, root)
            text = self._spelled("".join(raw)).strip()
            self._argue(dumped(text) if types == {"string"} else as_json(text, types))
        return bool(stop) and stop != form.close

    def _bare_list(self, form: BareKeyCalls, schema: Any, root: Any, depth: int) -> Step[bool]:
        cursor = self._cursor
        items = schema.get("items") if isinstance(schema, Mapping) else None
        opening = "["
        while True:
            yield from cursor.space()
            if (yield from cursor.literal("]")):
                self._argue("[]" if opening == "[" else "]")
                return True
            self._argue(opening)
            opening = ", "
            if cursor.ended and not cursor.rest:
                return False
            if not (yield from self._bare_value(form, items, root, depth)):
                return False
            yield from cursor.space()
            yield from cursor.literal(",")

    def _bare_text(self, form: BareKeyCalls) -> Step[bool]:
        """Text as it comes, between quotes."""
        self._argue('"')
        self.in_value = True
        found = yield from self._cursor.until(
            (form.quote,), lambda text: self._argue(dumped(self._spelled(text))[1:-1])
        )
        self.in_value = False
        if found:
            self._argue('"')
        return bool(found)

    # NAME(KEY=VALUE, …)

    def _python_calls(self, form: PythonCalls) -> Step[None]:
        cursor = self._cursor
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
        cursor = self._cursor
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
    name = re.sub(r":\d+\Z", "", written) if form.is_numbered else written
    return name.removeprefix(form.name_prefix)
