"""What a router has to know of a request, read from its body: what stands in its prompt, and how much it may draw.

It knows no tokenizer and no modes. Four bytes of the prompt's text stand for a token. What asks for a mode, as it
stands in the body, stands for the mode: requests that say the same are of the same kind, and draw alike.
"""

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TOKEN_BYTES = 4
UNBOUND = 1 << 20
"""Tokens that a request may draw which names no limit."""
MOST_WORD = 32
"""Characters of a field that count for its kind: what a client writes there is not trusted to be short."""
LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
ASKING = (
    ("reasoning_mode",),
    ("reasoning_effort",),
    ("think",),
    ("reasoning", "enabled"),
    ("reasoning", "effort"),
    ("thinking", "type"),
    ("output_config", "effort"),
    ("chat_template_kwargs", "enable_thinking"),
)
"""The fields that ask for a mode, by their paths."""
FIRST = ("tools", "system", "instructions")
"""What stands in a prompt before its messages."""
MESSAGES = ("messages", "input", "prompt")


@dataclass(frozen=True)
class Asked:
    """A request that draws tokens. `prompt`: a number for each TOKEN_BYTES of its text; `salt`: of which model."""

    prompt: Sequence[int]
    kind: str
    limit: int
    salt: str

    @classmethod
    def of(cls, body: bytes) -> "Asked | None":
        """None where there is no prompt in it, as in what controls a request that runs.

        Of a body that is no JSON object, as one that was cut, its bytes are the prompt.
        """
        try:
            fields = json.loads(body)
        except ValueError:  # UnicodeDecodeError is one
            return cls(_units(body), "", UNBOUND, "") if body else None
        if not isinstance(fields, dict) or not any(name in fields for name in MESSAGES):
            return None
        model, _, mode = str(fields.get("model", "")).partition(":")
        text = "\n".join(json.dumps(part, ensure_ascii=False) for part in _parts(fields))
        kind = "|".join([mode[:MOST_WORD], *(_word(fields, path) for path in ASKING)])
        return cls(_units(text.encode("utf-8", "replace")), kind, _limit(fields), model)


def _parts(fields: Mapping[str, Any]) -> Iterable[object]:
    """In the order in which they stand in the prompt."""
    yield from (fields[name] for name in FIRST if name in fields)
    for name in MESSAGES:
        value = fields.get(name)
        if isinstance(value, list):
            yield from value
        elif value is not None:
            yield value


def _word(fields: Mapping[str, Any], path: Sequence[str]) -> str:
    value: object = fields
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return "" if value is None or isinstance(value, dict | list) else str(value)[:MOST_WORD]


def _limit(fields: Mapping[str, Any]) -> int:
    named = [value for name in LIMITS if isinstance(value := fields.get(name), int) and value > 0]
    return min([UNBOUND, *named])


def _units(text: bytes) -> Sequence[int]:
    number = len(text) // TOKEN_BYTES
    return struct.unpack(f"<{number}I", text[: number * TOKEN_BYTES])
