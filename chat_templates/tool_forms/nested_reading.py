"""Reads calls whose values are XML in XML."""

from typing import Any

from chat_templates.tool_forms.cursor import Step
from chat_templates.tool_forms.form import NestedCalls
from chat_templates.tool_forms.reading import NotACallError, Reading
from chat_templates.tool_forms.values import as_json, dumped, is_text, items_of, members_of, types_of

_DEEPEST = 64  # levels


class NestedReading(Reading[NestedCalls]):
    """Texts are told as they come, other values once they are whole."""

    def section(self) -> Step[None]:
        """As in Reading."""
        form, cursor = self._form, self.cursor
        while True:
            yield from cursor.space()
            yield from self._tag(form.call_open)
            name, _ = yield from self._name((form.name_end,))
            if not name:
                raise NotACallError
            self._start(name)
            root = self._tools.get(self._spelled(name), {})
            complete = yield from self._object(root, root, form.call_close, None, 0)
            self._end(complete=complete)
            if not complete and not cursor.ended:
                raise NotACallError
            if (yield from self._closes(form.close)):
                return

    def _object(self, schema: Any, root: Any, close: str, key: str | None, depth: int) -> Step[bool]:
        """What stands before `close`, and that; whether it is whole. `key`: of the first value, if it has been read."""
        properties = members_of(schema, root)
        opening = "{"
        while True:
            if key is None:
                key = yield from self._key(close)
            if key is None:
                return False
            if not key:
                self._argue("{}" if opening == "{" else "}")
                return True
            name = self._spelled(key)
            self._argue(f"{opening}{dumped(name)}: ")
            opening = ", "
            if not (yield from self._value(key, properties.get(name), root, depth)):
                return False
            key = None

    def _list(self, schema: Any, root: Any, close: str, depth: int) -> Step[bool]:
        """The same of a list, whose first item has begun."""
        items = items_of(schema, root)
        opening = "["
        key: str | None = self._form.item
        while key == self._form.item:
            self._argue(opening)
            opening = ", "
            if not (yield from self._value(key, items, root, depth)):
                return False
            key = yield from self._key(close)
        if key == "":
            self._argue("]")
        return key == ""

    def _key(self, close: str) -> Step[str | None]:
        """The key that comes next, "" for `close`, None for neither."""
        cursor = self.cursor
        yield from cursor.space()
        found = yield from cursor.literal(close, f"{self._form.mark}<")
        if found == close:
            self._read()
            return ""
        return (yield from self._rest_of_key()) if found else None

    def _rest_of_key(self) -> Step[str | None]:
        parts: list[str] = []
        found = yield from self.cursor.until((">", "<", "\n", self._form.mark), parts.append)
        key = "".join(parts)
        return key if found == ">" and key and not key.startswith("/") else None

    def _value(self, key: str, schema: Any, root: Any, depth: int) -> Step[bool]:
        """What stands between a key and its end; whether it is whole."""
        cursor = self.cursor
        close, types = f"{self._form.mark}</{key}>", types_of(schema, root)
        if types == {"string"}:
            return (yield from self._text(close))
        found = yield from cursor.literal(close, f"{self._form.mark}<")
        if found == close:
            self._argue("[]" if "array" in types else "{}" if "object" in types else dumped(""))
            return True
        if found:
            return depth < _DEEPEST and (yield from self._nested(schema, root, close, types, depth + 1))
        if is_text(types):
            return (yield from self._text(close))
        raw: list[str] = []
        self.in_value = True
        found = yield from cursor.until((close,), raw.append)
        self.in_value = False
        if found:
            self._argue(as_json(self._spelled("".join(raw)), types))
        return bool(found)

    def _nested(self, schema: Any, root: Any, close: str, types: frozenset[str], depth: int) -> Step[bool]:
        """An object or a list, whose first tag has begun."""
        first = yield from self._rest_of_key()
        if first is None:
            return False
        if first == self._form.item and ("array" in types or "object" not in types):
            return (yield from self._list(schema, root, close, depth))
        return (yield from self._object(schema, root, close, first, depth))

    def _text(self, close: str) -> Step[bool]:
        """Text as it comes, between quotes."""
        self._argue('"')
        self.in_value = True
        found = yield from self.cursor.until((close,), lambda text: self._argue(dumped(self._spelled(text))[1:-1]))
        self.in_value = False
        if found:
            self._argue('"')
        return bool(found)
