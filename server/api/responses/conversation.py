"""From the items of an input to the messages of a conversation, as chat templates take them."""

from collections.abc import Iterable
from typing import Any

from server.api.common.sealed import unseal
from server.api.responses.items import (
    CallOutput,
    CustomToolCall,
    FunctionCall,
    Item,
    Message,
    Reasoning,
    text_of,
)
from server.api.responses.tools import as_arguments, shown_name
from server.errors import BadRequestError

SEALED = "reasoning"
"""What a thinking is sealed as (`server.api.common.sealed`)."""
BAD_SEAL = "invalid_encrypted_content"


class Turns:
    """Gathers messages. What the model wrote in one go (thinking, text, calls) is one message, as it was one turn.

    `names`: what those of the core's fields that can still be wrong are called here.
    """

    def __init__(self, instructions: str | None) -> None:
        self.messages: list[dict[str, Any]] = []
        self.names: dict[str, str] = {}
        self._turn: dict[str, Any] | None = None
        if instructions is not None:
            self.messages.append({"role": "system", "content": instructions})

    def add(self, items: Iterable[Item], path: str | None = None) -> None:
        """Adds items without references; `path` is the field that they came in, if it was this request's.

        Raises BadRequestError.
        """
        for index, item in enumerate(items):
            self._add(item, None if path is None else f"{path}[{index}]")

    def _add(self, item: Item, path: str | None) -> None:
        match item:
            case Message(role="assistant"):
                self._model_turn()["content"] = text_of(item.content)
            case Reasoning():
                turn = self._model_turn()
                turn["reasoning_content"] = turn.get("reasoning_content", "") + thinking_of(item, path)
            case FunctionCall():
                self._call(item.call_id, shown_name(item.name, item.namespace), item.arguments, path)
            case CustomToolCall():
                self._call(item.call_id, shown_name(item.name, item.namespace), as_arguments(item.input), path)
            case Message():
                self._other({"role": item.role, "content": text_of(item.content)})
            case CallOutput():
                self._other({"role": "tool", "tool_call_id": item.call_id, "content": text_of(item.output)})

    def _other(self, message: dict[str, Any]) -> None:
        self._turn = None
        self.messages.append(message)

    def _model_turn(self, *, is_call: bool = False) -> dict[str, Any]:
        """The turn that goes on; a new one where thinking or text follows text."""
        if self._turn is None or (self._turn["content"] and not is_call):
            self._turn = {"role": "assistant", "content": ""}
            self.messages.append(self._turn)
        return self._turn

    def _call(self, call_id: str, name: str, arguments: str, path: str | None) -> None:
        calls = self._model_turn(is_call=True).setdefault("tool_calls", [])
        if path is not None:
            place = f"messages[{len(self.messages) - 1}].tool_calls[{len(calls)}].function"
            self.names |= {f"{place}.arguments": f"{path}.arguments", f"{place}.name": f"{path}.name"}
        calls.append({"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}})


def thinking_of(item: Reasoning, path: str | None) -> str:
    """Sealed, open, or as a summary; raises BadRequestError for a seal that is not this server's."""
    if item.encrypted_content is not None:
        text = unseal(SEALED, item.encrypted_content)
        if text is None:
            raise BadRequestError(
                f"{path}.encrypted_content was not sealed by this server, or was changed since. "
                "Leave the item out, or send its content.",
                param=f"{path}.encrypted_content",
                code=BAD_SEAL,
            )
        return text
    return "".join(part.text for part in item.content or item.summary or ())
