"""What the model thought before its tool calls, for clients that send the calls back without it.

Some families are trained to go on from the thinking of their tool turns. OpenAI's chat API has no place for it, so
most clients drop it. It is found again by the calls' ids, which the server made up. Knows no tokens.
"""

import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from chat_templates.events import Event, ReasoningText, ToolCallStart
from server.core.client_memory import ClientMemory
from server.core.generated_tokens import Owner

MOST_BYTES = 1 << 25
CALL_BYTES = 512
"""What is kept of a call beside the text: at least what it takes."""
WIDEST = 4
"""Bytes of a character, at most."""
_NAMES = ("reasoning_content", "reasoning")


class _Key(NamedTuple):
    client: str
    salt: str
    call: str


class Thoughts:
    """Remembers thoughts by the calls that followed them, and by whose they are: of the same API key and cache salt.

    Where `most_bytes` are not enough, those who have most of it lose their oldest. May be used on any thread.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._thoughts: dict[_Key, str] = {}
        self._memory = ClientMemory[_Key](most_bytes)
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """In bytes, not less than what it takes."""
        return self._memory.size

    def remember(self, thought: str, call_ids: Sequence[str], owner: Owner) -> None:
        """The model thought this, and then made these calls."""
        client, salt = owner
        with self._lock:
            for call_id in call_ids if thought else ():
                key = _Key(client, salt, _bare(call_id))
                self._memory.forget(client, key)
                self._memory.count(client, key, CALL_BYTES + WIDEST * len(thought))
                self._thoughts[key] = thought
            for _, key in self._memory.overflow():
                del self._thoughts[key]

    def filled(self, messages: Sequence[Mapping[str, Any]], owner: Owner) -> Sequence[Mapping[str, Any]]:
        """The messages, still unchecked, with what is remembered in those turns with calls that say no thinking."""
        with self._lock:
            return [self._filled(message, owner) for message in messages]

    def _filled(self, message: Mapping[str, Any], owner: Owner) -> Mapping[str, Any]:
        for call_id in _call_ids(message):
            thought = self._thoughts.get(_Key(*owner, _bare(call_id)))
            if thought is not None:
                return {**message, _NAMES[0]: thought}
        return message


class Recollection:
    """Gathers what one choice thinks and calls, from its events."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self.call_ids: list[str] = []

    def add(self, events: Sequence[Event]) -> None:
        """The next events."""
        for event in events:
            if isinstance(event, ReasoningText):
                self._texts.append(event.text)
            elif isinstance(event, ToolCallStart):
                self.call_ids.append(event.id)

    @property
    def thought(self) -> str:
        """All of the thinking so far."""
        return "".join(self._texts)


def _call_ids(message: Any) -> list[str]:
    """Of an assistant's turn that says no thinking; none of any other."""
    if not isinstance(message, Mapping) or message.get("role") != "assistant":
        return []
    calls, content = message.get("tool_calls"), message.get("content")
    parts = content if isinstance(content, list) else []
    thinks = any(isinstance(part, Mapping) and part.get("type") == "thinking" for part in parts)
    if thinks or any(message.get(name) for name in _NAMES) or not isinstance(calls, list):
        return []
    ids = [call.get("id") for call in calls if isinstance(call, Mapping)]
    return [call_id for call_id in ids if isinstance(call_id, str)]


def _bare(call_id: str) -> str:
    """Without what an API puts before it (`call_`, `toolu_`)."""
    return call_id.rpartition("_")[2]
