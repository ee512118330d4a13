"""Reads calls with tags around each value."""

from typing import Any

from chat_templates.tool_forms.cursor import Step
from chat_templates.tool_forms.form import TaggedCalls
from chat_templates.tool_forms.reading import NotACallError, Reading
from chat_templates.tool_forms.values import as_json, dumped, is_text, parameters_of, types_of


class TaggedReading(Reading[TaggedCalls]):
    """Texts are told as they come, other values once they are whole."""

    def section(self) -> Step[None]:
        """As in Reading."""
        form = self._form
        cursor = self.cursor
        while True:
            yield from cursor.space()
            yield from self._tag(form.call_open)
            if (yield from self._tagged_call(form)) == form.close or (yield from self._closes(form.close)):
                return

    def _tagged_call(self, form: TaggedCalls) -> Step[str]:
        """One call; the tag that ended it."""
        cursor = self.cursor
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
        cursor = self.cursor
        key: list[str] = []
        ends = (*form.key_ends, form.text_key_end, *form.json_key_ends.values())
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
        closed = yield from self.cursor.until(_closes_of(form), argue)
        self.in_value = False
        if closed:
            self._argue('"')
        return self._closed_by(closed, form)

    def _closed_by(self, closed: str, form: TaggedCalls) -> bool:
        """Models leave out the tag after the last value: then the next tag ends it, and is read again."""
        if closed and closed != form.param_close:
            self.cursor.at -= len(closed)
        return bool(closed)


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
