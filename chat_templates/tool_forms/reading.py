"""What the readers of all forms share: where the text has been read to, and the events that it gave."""

from collections.abc import Callable, Mapping
from typing import Any, Generic, Protocol, TypeVar

from chat_templates.events import Event, ToolCallArguments, ToolCallEnd, ToolCallStart
from chat_templates.tokens import replace_surrogates
from chat_templates.tool_forms.cursor import NAME, Cursor, Step
from chat_templates.tool_forms.form import CallForm

Form = TypeVar("Form", bound=CallForm)


class NotACallError(Exception):
    """What stands where a call should is none."""


class Ahead(Protocol):
    """What has looked further than the cursor has read."""

    @property
    def is_quoted(self) -> bool: ...  # noqa: D102 - whether it ends within quotes


class Reading(Generic[Form]):
    """A section of one form as it is read; `section` of a subclass has the steps.

    `tools`, `first`, `call_id`, `spellings`: as in `SectionReader`.
    """

    def __init__(
        self, form: Form, tools: Mapping[str, Any], first: int, call_id: Callable[[], str], spellings: Mapping[int, str]
    ) -> None:
        self.calls = first
        self.has_started = False
        self.in_value = False
        self.cursor = Cursor()
        self.events: list[Event] = []
        self._form = form
        self._tools = tools
        self._call_id = call_id
        self._spellings = spellings
        self._ahead: Ahead = self.cursor

    @property
    def is_quoted(self) -> bool:
        """Whether what was fed ends within quotes, where any tag is text."""
        return self.cursor.is_quoted or self._ahead.is_quoted

    def section(self) -> Step[None]:
        """Reads one section, behind its opening tag. Raises NotACallError."""
        raise NotImplementedError

    def _start(self, name: str) -> None:
        self._read()
        self.has_started = True
        self.events.append(ToolCallStart(self.calls, self._call_id(), self._spelled(name)))

    def _argue(self, text: str) -> None:
        self._read()
        self.events.append(ToolCallArguments(self.calls, self._spelled(text)))

    def _end(self, *, complete: bool) -> None:
        self.events.append(ToolCallEnd(self.calls, complete))
        self.calls += 1

    def _spelled(self, text: str) -> str:
        """Text as clients see it."""
        return text if text.isascii() else replace_surrogates(text.translate(self._spellings))

    def _read(self) -> None:
        """What the cursor has read is told of, or belongs to the tags."""
        self.cursor.forget()

    def _closes(self, close: str) -> Step[bool]:
        """Whether the section's end comes next, after white space, or all text ends here."""
        cursor = self.cursor
        yield from cursor.space()
        found = bool(close) and bool((yield from cursor.literal(close)))
        found = found or (cursor.ended and not cursor.rest)
        if found:
            self._read()
        return found

    def _tag(self, tag: str) -> Step[None]:
        """Reads a tag that has to be there."""
        if tag and not (yield from self.cursor.literal(tag)):
            raise NotACallError

    def _name(self, stops: tuple[str, ...]) -> Step[tuple[str, str]]:
        """What may be a name, and the tag after it."""
        parts: list[str] = []

        def collect(text: str) -> None:
            parts.append(text)
            if not NAME.fullmatch("".join(parts)):
                raise NotACallError

        found = yield from self.cursor.until(stops, collect)
        if not found:
            raise NotACallError
        return "".join(parts).strip(), found
