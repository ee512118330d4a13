"""Reads the text of one tool call, between its tags, as it comes; knows nothing of tokens or of the text around it."""

import json
import re
from collections.abc import Sequence

from chat_templates.events import Event, ToolCallArguments, ToolCallEnd, ToolCallStart
from chat_templates.tokens import replace_surrogates

_HEAD = re.compile(
    r"""\s* \{ \s* "name" \s* : \s* ("(?: [^"\\\x00-\x1f] | \\["\\/bfnrt] | \\u[0-9a-fA-F]{4} )+") \s*
        , \s* "arguments" \s* : \s* (?=\{)""",
    re.VERBOSE,
)
_LONGEST_HEAD = 512  # characters; bounds how much is searched again with every token
_TAIL = re.compile(r"\s*\}?\s*")


class ToolCallReader:
    """One call, `{"name": …, "arguments": {…}}`.

    Once name and the opening brace of the arguments are there, the call has started, and what follows is passed on as
    its arguments at once, up to the matching brace; whether that is sound JSON is, as OpenAI says, the client's to
    check. A call written in another order or with its arguments encoded twice is read when it is whole.
    """

    def __init__(self, index: int, call_id: str) -> None:
        self.has_started = False
        self._index = index
        self._id = call_id
        self._text = ""  # before the arguments, then after them
        self._depth = 0
        self._is_string = False
        self._is_escaped = False
        self._is_complete = False

    @property
    def is_in_string(self) -> bool:
        """Whether the arguments so far end within a string."""
        return self._is_string and not self._is_complete

    @property
    def is_head(self) -> bool:
        """Whether the text so far may be the beginning of a call, before its arguments."""
        return not self.has_started and self._text.strip()[:1] in ("", "{") and _object(self._text) is None

    def feed(self, text: str) -> list[Event]:
        """What this text adds to the call."""
        if self.has_started:
            return self._arguments(text)
        is_undecided = len(self._text) < _LONGEST_HEAD
        self._text += text
        head = _HEAD.match(self._text, 0, _LONGEST_HEAD) if is_undecided else None
        if head is None:
            return []
        rest = self._text[head.end() :]
        return [*self._start(json.loads(head[1])), *self._arguments(rest)]

    def close(self) -> tuple[list[Event], str]:
        """The call's last events, and the text that is not part of a call: all of it, if this was none."""
        events: list[Event] = []
        if not self.has_started:
            call = whole_call(self._text)
            if call is None:
                return [], self._text
            name, arguments = call
            events += [*self._start(name), ToolCallArguments(self._index, arguments)]
            self._is_complete = True
        events.append(ToolCallEnd(self._index, self._is_complete))
        return events, "" if _TAIL.fullmatch(self._text) else self._text

    def _start(self, name: str) -> list[Event]:
        self.has_started = True
        self._text = ""
        return [ToolCallStart(self._index, self._id, replace_surrogates(name))]

    def _arguments(self, text: str) -> list[Event]:
        end = len(text) if not self._is_complete else 0
        for index, char in enumerate(text[:end]):
            self._step(char)
            if self._is_complete:
                end = index + 1
                break
        self._text += text[end:]
        return [ToolCallArguments(self._index, text[:end])] if end else []

    def _step(self, char: str) -> None:
        """Follows strings and braces to find the one that ends the arguments."""
        if self._is_escaped:
            self._is_escaped = False
        elif self._is_string:
            self._is_escaped = char == "\\"
            self._is_string = char != '"'
        elif char == '"':
            self._is_string = True
        elif char == "{":
            self._depth += 1
        elif char == "}":
            self._depth -= 1
            self._is_complete = self._depth == 0


def whole_call(text: str, keys: Sequence[str] = ("arguments",)) -> tuple[str, str] | None:
    """Name and JSON arguments of a call in any order of keys; None if it is none.

    `keys`: those that may hold the arguments; of several that are there, the first counts.
    """
    call = _object(text)
    if call is None or not call.keys() <= {"name", *keys}:
        return None  # dropping other keys would lose what the model said
    name, arguments = call.get("name"), next((call[key] for key in keys if key in call), None)
    if isinstance(arguments, str):
        arguments = _object(arguments)
        if arguments is None:
            return None
    if not isinstance(name, str) or not name or not isinstance(arguments, dict | None):
        return None
    try:
        return name, replace_surrogates(json.dumps(arguments or {}, ensure_ascii=False, allow_nan=False))
    except (ValueError, RecursionError):  # Infinity and NaN are no JSON
        return None


def _object(text: str) -> dict[str, object] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
