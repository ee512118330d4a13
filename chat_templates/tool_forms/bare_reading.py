"""Reads calls as JSON whose keys have no quotes, and whose texts have other ones."""

from collections.abc import Mapping
from typing import Any

from chat_templates.tool_forms.cursor import Step
from chat_templates.tool_forms.form import BareKeyCalls
from chat_templates.tool_forms.reading import NotACallError, Reading
from chat_templates.tool_forms.values import as_json, dumped, parameters_of, types_of

_DEEPEST = 64  # levels


class BareReading(Reading[BareKeyCalls]):
    """Texts are told as they come, other values once they are whole."""

    def section(self) -> Step[None]:
        """As in Reading."""
        form = self._form
        while True:
            yield from self.cursor.space()
            yield from self._tag(form.call_open)
            name, _ = yield from self._name(("{",))
            if not name:
                raise NotACallError
            self._start(name)
            root = self._tools.get(self._spelled(name), {})
            complete = yield from self._bare_object(form, root, root)
            self._end(complete=complete)
            if not complete and not self.cursor.ended:
                raise NotACallError
            if (yield from self._closes(form.close)):
                return

    def _bare_object(self, form: BareKeyCalls, schema: Any, root: Any, depth: int = 0) -> Step[bool]:
        """What follows the opening brace; whether it is whole."""
        cursor = self.cursor
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
        cursor = self.cursor
        parts: list[str] = []
        if (yield from cursor.literal(form.quote)):
            if not (yield from cursor.until((form.quote,), parts.append)):
                return None
            yield from cursor.space()
            return self._spelled("".join(parts)) if (yield from cursor.literal(":")) else None
        found = yield from cursor.until((":", form.close, *"{}[],"), parts.append)
        return self._spelled("".join(parts)).strip() if found == ":" else None

    def _bare_value(self, form: BareKeyCalls, schema: Any, root: Any, depth: int) -> Step[bool]:
        cursor = self.cursor
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
        cursor = self.cursor
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
        found = yield from self.cursor.until((form.quote,), lambda text: self._argue(dumped(self._spelled(text))[1:-1]))
        self.in_value = False
        if found:
            self._argue('"')
        return bool(found)
