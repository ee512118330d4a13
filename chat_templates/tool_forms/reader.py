"""Reads a section of tool calls as it comes, in any of the forms; knows nothing of tokens or of the text around it.

A call has started once its name is known and its arguments begin.
"""

from collections.abc import Callable, Mapping
from typing import Any

from chat_templates.events import Event
from chat_templates.tool_forms.bare_reading import BareReading
from chat_templates.tool_forms.form import (
    BareKeyCalls,
    CallForm,
    JsonCalls,
    NamedJsonCalls,
    NestedCalls,
    PythonCalls,
    TaggedCalls,
)
from chat_templates.tool_forms.json_reading import JsonReading
from chat_templates.tool_forms.named_reading import NamedReading
from chat_templates.tool_forms.nested_reading import NestedReading
from chat_templates.tool_forms.python_reading import PythonReading
from chat_templates.tool_forms.reading import NotACallError, Reading
from chat_templates.tool_forms.tagged_reading import TaggedReading

_READINGS: dict[type, type[Reading[Any]]] = {
    JsonCalls: JsonReading,
    NamedJsonCalls: NamedReading,
    TaggedCalls: TaggedReading,
    NestedCalls: NestedReading,
    BareKeyCalls: BareReading,
    PythonCalls: PythonReading,
}


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
        self._reading = _READINGS[type(form)](form, tools, first, call_id, spellings or {})
        self._steps = self._reading.section()

    @property
    def calls(self) -> int:
        """The index of the next call."""
        return self._reading.calls

    @property
    def has_started(self) -> bool:
        """Whether there has been a call."""
        return self._reading.has_started

    @property
    def in_value(self) -> bool:
        """Whether what was fed ends within a value that has tags around it."""
        return self._reading.in_value

    @property
    def is_quoted(self) -> bool:
        """Whether what was fed ends within quotes, where any tag is text."""
        return self._reading.is_quoted

    def feed(self, text: str) -> list[Event]:
        """What this text adds."""
        self._reading.cursor.text += text
        return self._read()

    def finish(self) -> list[Event]:
        """The last events; what began no call is in `rest`."""
        self._reading.cursor.ended = True
        return self._read()

    def _read(self) -> list[Event]:
        reading = self._reading
        if not self.is_closed:
            try:
                next(self._steps)
            except (StopIteration, NotACallError) as end:
                self.is_closed = True
                self.rest = reading.cursor.rest if isinstance(end, StopIteration) else reading.cursor.text
        events, reading.events = reading.events, []
        return events
