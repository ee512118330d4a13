"""Reads calls whose name stands before JSON arguments."""

import re

from chat_templates.tool_forms.cursor import SPACE, Step
from chat_templates.tool_forms.form import NamedJsonCalls
from chat_templates.tool_forms.reading import NotACallError, Reading


class NamedReading(Reading[NamedJsonCalls]):
    """Arguments are told as they come."""

    def section(self) -> Step[None]:
        """As in Reading."""
        form = self._form
        cursor = self.cursor
        is_first = True
        while True:
            yield from cursor.space()
            yield from self._tag(form.call_open or ("" if is_first else form.open))
            is_first = False
            yield from self._named_call(form)
            if (yield from self._closes(form.close)):
                return

    def _named_call(self, form: NamedJsonCalls) -> Step[None]:
        cursor = self.cursor
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


def _name_of(written: str, form: NamedJsonCalls) -> str:
    name = re.sub(r":\d+\Z", "", written) if form.is_numbered else written
    return name.removeprefix(form.name_prefix)
