"""From Anthropic's turns of blocks to the messages that templates read, where a tool's result is one of its own."""

from collections.abc import Sequence
from typing import Any

from server.api.common.sealed import unseal
from server.api.messages.body import (
    AssistantBlock,
    AssistantMessage,
    CountTokensRequest,
    SystemMessage,
    TextBlockParam,
    ThinkingBlockParam,
    Tool,
    ToolResultBlockParam,
    ToolUseBlockParam,
    UserMessage,
)
from server.core.request import Conversation
from server.errors import BadRequestError

SEALED_THINKING = "thinking"
"""The kind of a signature; see `server.api.common.sealed`."""
BETWEEN_BLOCKS = "\n\n"  # of what a client says; the blocks of an answer are the model's words, with nothing between
ERROR = "Error: "


def conversation_of(asked: CountTokensRequest) -> tuple[Conversation, dict[str, str]]:
    """The conversation, and what its messages and tools are called in the request. Raises BadRequestError."""
    turns = _Turns()
    if asked.system:
        turns.say("system", asked.system, "system")
    for index, message in enumerate(asked.messages):
        path = f"messages[{index}]"
        match message:
            case AssistantMessage():
                turns.answer(message.content, path)
            case UserMessage():
                turns.ask(message.content, path)
            case SystemMessage():
                turns.say("system", message.content, path)
    continues = isinstance(asked.messages[-1], AssistantMessage)
    if continues and turns.last_calls:
        path = f"messages[{len(asked.messages) - 1}]"
        raise BadRequestError(f"{path}: tool_use blocks need tool_result blocks in the next message.", param=path)
    tools = asked.tools or []
    names = {f"tools[{index}].function": f"tools[{index}]" for index in range(len(tools))}
    names |= {f"tools[{index}].function.parameters": f"tools[{index}].input_schema" for index in range(len(tools))}
    return Conversation(turns.messages(), list(map(_function, tools)), continues=continues), {**turns.names, **names}


class _Turn:
    """One message while texts are added to it; `calls` and `tool_call_id` as the chat templates know them."""

    def __init__(self, role: str, tool_call_id: str = "") -> None:
        self.role = role
        self.texts: list[str] = []
        self.thinking: list[str] = []
        self.calls: list[dict[str, Any]] = []
        self.tool_call_id = tool_call_id

    def message(self) -> dict[str, Any]:
        if self.role == "assistant":
            said = {"content": "".join(self.texts), "reasoning_content": "".join(self.thinking)}
            return {"role": self.role, **said, **({"tool_calls": self.calls} if self.calls else {})}
        message = {"role": self.role, "content": BETWEEN_BLOCKS.join(self.texts)}
        return {**message, "tool_call_id": self.tool_call_id} if self.role == "tool" else message


class _Turns:
    """The turns so far. `names` says where in the request each begins, and where the input of each call stands."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self._turns: list[_Turn] = []

    def messages(self) -> list[dict[str, Any]]:
        """All of them, as templates read them."""
        return [turn.message() for turn in self._turns]

    @property
    def last_calls(self) -> bool:
        """Whether the last one calls tools."""
        return bool(self._turns and self._turns[-1].calls)

    def ask(self, content: Sequence[TextBlockParam | ToolResultBlockParam], path: str) -> None:
        """Adds what a user says, and what tools answer."""
        for index, block in enumerate(content):
            at = f"{path}.content[{index}]"
            if isinstance(block, ToolResultBlockParam):
                self._add(_Turn("tool", block.tool_use_id), at).texts.append(_result(block))
            else:
                self.say("user", [block], at)

    def say(self, role: str, content: Sequence[TextBlockParam], path: str) -> None:
        """Adds text, to the turn before if that is of the same role."""
        self._turn_of(role, path).texts += [block.text for block in content]

    def answer(self, content: Sequence[AssistantBlock], path: str) -> None:
        """Adds what the model said, to its turn before if it comes right after it."""
        turn = self._turn_of("assistant", path)
        for index, block in enumerate(content):
            at = f"{path}.content[{index}]"
            match block:
                case TextBlockParam():
                    turn.texts.append(block.text)
                case ThinkingBlockParam():
                    turn.thinking.append(_thinking(block, at))
                case ToolUseBlockParam():
                    call = f"messages[{len(self._turns) - 1}].tool_calls[{len(turn.calls)}]"
                    self.names[f"{call}.function.arguments"] = f"{at}.input"
                    function = {"name": block.name, "arguments": block.input}
                    turn.calls.append({"id": block.id, "type": "function", "function": function})

    def _turn_of(self, role: str, path: str) -> _Turn:
        """The last turn if it is of this role, else a new one."""
        if self._turns and self._turns[-1].role == role:
            return self._turns[-1]
        return self._add(_Turn(role), path)

    def _add(self, turn: _Turn, path: str) -> _Turn:
        self.names[f"messages[{len(self._turns)}]"] = path
        self._turns.append(turn)
        return turn


def _result(block: ToolResultBlockParam) -> str:
    text = BETWEEN_BLOCKS.join(part.text for part in block.content)
    return ERROR + text if block.is_error else text


def _thinking(block: ThinkingBlockParam, path: str) -> str:
    """What the signature holds; nothing where it is not ours, as after a change of models or of the server's key."""
    known = unseal(SEALED_THINKING, block.signature)
    if known is not None and block.thinking not in ("", known):
        raise BadRequestError(f"{path}.signature: it is that of another text; send the block as it came.", param=path)
    return known or ""


def _function(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name, "parameters": tool.input_schema}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.strict:
        function["strict"] = True
    return {"type": "function", "function": function}
