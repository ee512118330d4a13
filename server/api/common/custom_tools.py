"""Custom tools, which take text instead of JSON: to the model, functions whose one argument, `input`, is a string."""

import json
import re
from collections.abc import Mapping
from typing import Any

from server.core.grammar_jobs import TextGrammar

MAX_TOOLS = 256
_SYNTAXES = {"lark": "Lark grammar", "regex": "regular expression"}


def custom_parameters(grammar: TextGrammar | None) -> dict[str, Any]:
    """The JSON schema of a custom tool's arguments; it tells the model what form its input has."""
    text = {"type": "string"}
    if grammar is not None:
        text["description"] = f"Fits this {_SYNTAXES[grammar.kind]}:\n{grammar.definition}"
    return {"type": "object", "properties": {"input": text}, "required": ["input"]}


def as_arguments(text: str) -> str:
    """The arguments of a custom tool's call, as the model writes them."""
    return json.dumps({"input": text}, ensure_ascii=False)


_HEAD = re.compile(r'\s*\{\s*"input"\s*:\s*"')
_HIGH = r"\\u[dD][89abAB][0-9a-fA-F]{2}"  # the first half of a character that takes two escapes
_CERTAIN = re.compile(
    rf'(?:[^"\\]|\\["\\/bfnrt]|(?!{_HIGH})\\u[0-9a-fA-F]{{4}}|{_HIGH}\\u[0-9a-fA-F]{{4}}|{_HIGH}(?=[^\\]|\\[^u]))*'
)


class InputReader:
    """Reads a custom tool's input out of the arguments of its call, `{"input": "…"}`, as they come."""

    def __init__(self) -> None:
        self._unread = ""
        self._is_inside = False

    def feed(self, arguments: str) -> str:
        """More of the input, as far as it is certain."""
        self._unread += arguments
        if not self._is_inside:
            head = _HEAD.match(self._unread)
            if head is None:
                return ""
            self._is_inside = True
            self._unread = self._unread[head.end() :]
        certain = _CERTAIN.match(self._unread)
        assert certain is not None
        self._unread = self._unread[certain.end() :]
        return _unescaped(certain[0])

    def finish(self) -> str:
        """The whole of it where the model wrote it otherwise: what it wrote, if that is no such argument at all."""
        if self._is_inside:
            return ""
        try:
            arguments = json.loads(self._unread)
        except (ValueError, RecursionError):
            return self._unread
        text = arguments.get("input") if isinstance(arguments, Mapping) else None
        return text if isinstance(text, str) else self._unread


def _unescaped(text: str) -> str:
    unescaped: str = json.loads(f'"{text}"', strict=False)
    return unescaped.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
