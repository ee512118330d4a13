"""Runs a jinja template so that what it writes itself and what clients wrote stay apart; knows nothing of token ids.

A template writes control tokens by their spelling. Client text that holds such a spelling, or a part of one, gets a
`GUARD` character wherever a spelling begins or ends, so it matches none; after the split at the control tokens the
guards are taken out again. Guards are lone surrogates, which client text cannot hold: it arrives as UTF-8, and
`replace_surrogates` turns what JSON escapes smuggle in into U+FFFD.

Templates may join, trim, slice, replace and `tojson` client text, and test whether it is empty. A comparison with, or a
search for, text with `<`, `>`, `[` or `]` does not hold (the guards are in it).
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jinja2 import FileSystemLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from chat_templates.tokens import replace_surrogates

GUARD = "\udc80"
CUT = "\udc81"
"""Where a template writes it (variable `cut`), the text before and after is tokenized apart: there the prompt ends and
generation begins, or would have, so that a turn has the same ids when it is generated and when it comes back."""


class Templates:
    """The templates of this folder, for a tokenizer whose control tokens are spelled `spellings`."""

    def __init__(self, spellings: Iterable[str]) -> None:
        spellings = sorted(spellings, key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, (CUT, *spellings))) + ")")
        edges = "".join({re.escape(spelling[index]) for spelling in spellings for index in (0, -1)})
        self._edge = re.compile(f"[{edges}]")
        self._spellings = CUT.join(spellings)
        self._environment = ImmutableSandboxedEnvironment(
            loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, auto_reload=False
        )
        self._environment.filters["tojson"] = _to_json

    def render(self, name: str, **context: Any) -> list[str]:
        """The pieces of the rendered text, as `split` gives them.

        Every client string in `context` must have gone through `protect`.
        """
        return self.split(self._environment.get_template(name).render(cut=CUT, **context))

    def split(self, text: str) -> list[str]:
        """Control tokens and `CUT` one by one, the plain text between them whole and free of guards.

        Which piece is which is told by its place alone: 0, 2, 4 … are plain (maybe empty), 1, 3, 5 … are not.
        """
        return [piece.replace(GUARD, "") for piece in self._split.split(text)]

    def protect(self, text: str) -> str:
        """Client text that can neither be nor become part of a control token, whatever stands before and after it."""
        text = self._edge.sub(rf"{GUARD}\g<0>{GUARD}", replace_surrogates(text))
        core = text.strip()
        if core and core in self._spellings:  # the inner part of a spelling: "think" where a template writes <{{ x }}>
            return text.replace(core, GUARD + core + GUARD, 1)
        return text

    def protect_all(self, value: Any) -> Any:
        """The same for every string in a JSON value, keys included."""
        match value:
            case str():
                return self.protect(value)
            case list():
                return [self.protect_all(item) for item in value]
            case dict():
                return {self.protect(key): self.protect_all(item) for key, item in value.items()}
        return value


def _to_json(value: Any) -> str:
    """JSON as Python spaces it, non-ASCII kept, nothing escaped for HTML (jinja's own filter does all three)."""
    return json.dumps(value, ensure_ascii=False)
