"""The blocks of an answer: which one an event of the core belongs to, and what each looks like, whole and in parts."""

from pydantic_core import from_json

from chat_templates.events import AnswerText, Event, ReasoningText, ToolCallArguments, ToolCallStart
from server.api.common.sealed import seal
from server.api.messages.conversation import SEALED_THINKING
from server.errors import JsonObject

INVALID = "INVALID_JSON"
"""The key under which input that is no JSON object stands, as Anthropic has clients send it back."""


class Block:
    """One block under way. `empty` is what it is at its beginning; `delta` the type and the field of what adds text to
    it, None where that is hidden.
    """

    def __init__(self, empty: JsonObject, delta: tuple[str, str] | None) -> None:
        self.empty = empty
        self.kind = empty["type"]
        self._delta = delta
        self._parts: list[str] = []

    def add(self, text: str) -> None:
        """Takes more text."""
        self._parts.append(text)

    def delta(self, text: str) -> JsonObject | None:
        """What `text` adds to it in a stream."""
        if self._delta is None:
            return None
        kind, field = self._delta
        return {"type": kind, field: text}

    def last_delta(self) -> JsonObject | None:
        """What completes it in a stream."""
        return {"type": "signature_delta", "signature": self._signature()} if self.kind == "thinking" else None

    def whole(self) -> JsonObject:
        """The whole block."""
        text = "".join(self._parts)
        match self.kind:
            case "text":
                return {**self.empty, "text": text}
            case "thinking":
                return {**self.empty, "thinking": text if self._delta else "", "signature": self._signature()}
        return {**self.empty, "input": _input(text)}

    def _signature(self) -> str:
        """Holds the thinking, so that it can come back also where it is hidden."""
        return seal(SEALED_THINKING, "".join(self._parts))


def _text_block() -> Block:
    return Block({"type": "text", "text": "", "citations": []}, ("text_delta", "text"))


def _thinking_block(*, is_shown: bool) -> Block:
    empty: JsonObject = {"type": "thinking", "thinking": "", "signature": ""}
    return Block(empty, ("thinking_delta", "thinking") if is_shown else None)


def _call_block(call: ToolCallStart) -> Block:
    call_id = "toolu_" + call.id.removeprefix("call_")
    empty: JsonObject = {
        "type": "tool_use",
        "id": call_id,
        "name": call.name,
        "input": {},
        "caller": {"type": "direct"},
    }
    return Block(empty, ("input_json_delta", "partial_json"))


def _input(text: str) -> JsonObject:
    """The arguments of a call; of one that a limit cut off, what the SDK makes of them in a stream."""
    try:
        value = from_json(text or "{}", allow_partial=True)
    except ValueError:
        return {INVALID: text}
    return value if isinstance(value, dict) else {INVALID: text}


class Content:
    """The blocks so far: a new one begins wherever the model turns to something else."""

    def __init__(self, *, has_thinking: bool, shows_thinking: bool) -> None:
        self.blocks: list[Block] = []
        self._has_thinking = has_thinking
        self._shows_thinking = shows_thinking

    @property
    def has_calls(self) -> bool:
        """Whether the model called a tool."""
        return any(block.kind == "tool_use" for block in self.blocks)

    def add(self, event: Event) -> tuple[bool, str]:
        """Takes an event. Whether a block begins with it, the last one now; and the text that it adds to that."""
        match event:
            case AnswerText(text):
                begins = self._begins("text") and self._begin(_text_block())
            case ReasoningText(text) if self._has_thinking:
                begins = self._begins("thinking") and self._begin(_thinking_block(is_shown=self._shows_thinking))
            case ToolCallStart():
                return self._begin(_call_block(event)), ""
            case ToolCallArguments(_, text):
                begins = False
            case _:
                return False, ""
        self.blocks[-1].add(text)
        return begins, text

    def _begins(self, kind: str) -> bool:
        return not self.blocks or self.blocks[-1].kind != kind

    def _begin(self, block: Block) -> bool:
        self.blocks.append(block)
        return True
