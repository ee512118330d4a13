"""The tags that a checkpoint's `response_template` names: how transformers (`utils/chat_parsing`) reads what it writes.

Only texts are taken from it, no patterns: they are a hint, by which no generation is read.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from chat_templates.settings import FormatSettings

THINKING_FIELDS = ("thinking", "reasoning_content", "reasoning")
"""The names under which such templates have the thinking."""


class ResponseTags(NamedTuple):
    """What thinking stands between and what a tool call begins with; empty where that is not said."""

    think: str = ""
    think_end: str = ""
    call: str = ""

    @classmethod
    def of(cls, template: Any) -> "ResponseTags":
        """From the `response_template` in tokenizer_config.json; of what is none, all are empty."""
        fields = _object(_object(template).get("fields"))
        thinking = next((_object(fields[name]) for name in THINKING_FIELDS if name in fields), {})
        calls = _object(fields.get("tool_calls"))
        return cls(_text(thinking.get("open")), _text(thinking.get("close")), _text(calls.get("open")))

    def differences(self, settings: FormatSettings, call: str) -> Iterator[str]:
        """What is otherwise than the server has it, in words; `call` is what a call begins with here."""
        after = settings.after_think_end
        pairs = (
            ("thinking to begin with", self.think, settings.think + settings.after_think),
            ("thinking to end with", self.think_end, settings.before_think_end + settings.think_end + after),
            ("a tool call to begin with", self.call, call),
        )
        for what, theirs, ours in pairs:
            named, known = theirs.strip(), ours.strip()
            if named and known and not (known.startswith(named) or named.startswith(known)):
                yield f"{what} {named!r}, and the server takes {known!r}"


NO_TAGS = ResponseTags()


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    """A text, or the first of several."""
    first = value[0] if isinstance(value, list) and value else value
    return first if isinstance(first, str) else ""
