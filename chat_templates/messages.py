"""Checks the messages and tools of OpenAI's chat API and brings them to the few plain fields that templates read.

Knows nothing of templates or tokens. Whatever is wrong is a FormatError that names the field.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NoReturn, TypedDict

from chat_templates.errors import FormatError

Message = Mapping[str, Any]
"""A message as clients send it (role, content, name, tool_calls, tool_call_id; reasoning_content for training)."""
Tool = Mapping[str, Any]
"""A tool as clients send it: {"type": "function", "function": {"name", "description", "parameters"}}."""

Role = Literal["system", "user", "assistant", "tool"]
_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",  # OpenAI's newer name for it
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""The types of content parts that are text, and where it stands in them."""
_DEEPEST = 64  # levels of nested JSON; far above any schema, far below Python's recursion limit


class Call(TypedDict):
    """A tool call of a past assistant turn. `id` is "" where there is none; `arguments` are text where they are no JSON
    object, as when a limit cut the call off.
    """

    id: str
    name: str
    arguments: dict[str, Any] | str


class Turn(TypedDict):
    """What templates see of one message. `tool_call_id` is a tool's result's. Texts are "" where there are none."""

    role: Role
    name: str
    tool_call_id: str
    content: str
    reasoning_content: str
    tool_calls: list[Call]


def check_messages(messages: Sequence[Message]) -> list[Turn]:
    """One turn a message; raises FormatError."""
    if not _is_list(messages):
        raise FormatError("messages must be a list", "messages")
    if not messages:
        raise FormatError("messages must not be empty", "messages")
    return [_turn(message, f"messages[{index}]") for index, message in enumerate(messages)]


def check_tools(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """The tools as plain JSON values; raises FormatError."""
    if not _is_list(tools):
        raise FormatError("tools must be a list", "tools")
    return [_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools)]


def check_variables(variables: Mapping[str, Any]) -> dict[str, Any]:
    """What a client has a template told, as plain JSON values; raises FormatError."""
    return {name: _json(value, f"chat_template_kwargs.{name}") for name, value in variables.items()}


def _turn(message: Message, param: str) -> Turn:
    if not isinstance(message, Mapping):
        raise FormatError("a message must be an object", param)
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise FormatError(f"role must be one of {', '.join(_ROLES)}; got {role!r}", f"{param}.role")
    calls = message.get("tool_calls")
    if calls and role != "assistant":
        raise FormatError("only assistant messages have tool_calls", f"{param}.tool_calls")
    return {
        "role": _ROLES[role],
        "name": _optional_text(message, "name", param),
        "tool_call_id": _optional_text(message, "tool_call_id", param),
        "content": _content(
            message.get("content"),
            f"{param}.content",
            role,
            nullable=role in ("assistant", "tool"),
        ),
        "reasoning_content": _reasoning(message, param) if role == "assistant" else "",
        "tool_calls": _calls(calls, f"{param}.tool_calls"),
    }


def _content(content: object, param: str, role: str, *, nullable: bool) -> str:
    if isinstance(content, str):
        return content
    if content is None and nullable:
        return ""
    if not isinstance(content, list):
        raise FormatError("content must be a string or a list of text parts", param)
    return "".join(_part(part, f"{param}[{index}]", role) for index, part in enumerate(content))


def _part(part: object, param: str, role: str) -> str:
    """The text of a part; of an assistant's thinking none, which is `_reasoning`'s."""
    if not isinstance(part, Mapping):
        raise FormatError("a content part must be an object", param)
    kind = part.get("type")
    if kind == "thinking" and role == "assistant":
        return ""
    field = _TEXT_PARTS.get(kind) if isinstance(kind, str) else None
    if field is None:
        raise FormatError(f"this model reads only parts of type 'text'; got {kind!r}", f"{param}.type")
    text = part.get(field)
    if not isinstance(text, str):
        raise FormatError(f"{field} must be a string", f"{param}.{field}")
    return text


def _reasoning(message: Mapping[str, Any], param: str) -> str:
    """Under any of the names that peers give it, and we ourselves in responses; or as parts of the content."""
    named = _optional_text(message, "reasoning_content", param) or _optional_text(message, "reasoning", param)
    return named or "".join(_thinking_parts(message.get("content"), f"{param}.content"))


def _thinking_parts(content: object, param: str) -> Iterator[str]:
    """As Anthropic has them, and as Mistral, whose thinking is a list of text parts."""
    for index, part in enumerate(content if isinstance(content, list) else ()):
        if isinstance(part, Mapping) and part.get("type") == "thinking":
            inner = part.get("thinking")
            if not isinstance(inner, str | list):
                raise FormatError("thinking must be a string", f"{param}[{index}].thinking")
            yield _content(inner, f"{param}[{index}].thinking", "", nullable=False)


def _optional_text(value: Mapping[str, Any], field: str, param: str) -> str:
    text = value.get(field)
    if not isinstance(text, str | None):
        raise FormatError(f"{field} must be a string", f"{param}.{field}")
    return text or ""


def _calls(calls: object, param: str) -> list[Call]:
    if calls is None:
        return []
    if not isinstance(calls, list):
        raise FormatError("tool_calls must be a list", param)
    return [_call(call, f"{param}[{index}]") for index, call in enumerate(calls)]


def _call(call: object, param: str) -> Call:
    if not isinstance(call, Mapping):
        raise FormatError("a tool call must be an object", param)
    if call.get("type") == "custom":
        return _custom_call(call, param)
    function = _function(call, param)
    arguments = _arguments(function, f"{param}.function.arguments")
    return {"id": _optional_text(call, "id", param), "name": function["name"], "arguments": arguments}


def _custom_call(call: Mapping[str, Any], param: str) -> Call:
    """Of a tool that takes text: to the model, a function with one argument."""
    custom = call.get("custom")
    if not isinstance(custom, Mapping):
        raise FormatError("custom must be an object", f"{param}.custom")
    name, text = (_optional_text(custom, field, f"{param}.custom") for field in ("name", "input"))
    if not name:
        raise FormatError("name must be a string and not empty", f"{param}.custom.name")
    return {"id": _optional_text(call, "id", param), "name": name, "arguments": {"input": text}}


def _function(value: Mapping[str, Any], param: str) -> Mapping[str, Any]:
    """The `function` of a tool or of a call, with a name that is a string."""
    if value.get("type", "function") != "function":
        raise FormatError(f"type must be 'function'; got {value['type']!r}", f"{param}.type")
    function = value.get("function")
    if not isinstance(function, Mapping):
        raise FormatError("function must be an object", f"{param}.function")
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise FormatError("name must be a string and not empty", f"{param}.function.name")
    return function


def _arguments(function: Mapping[str, Any], param: str) -> dict[str, Any] | str:
    """OpenAI sends them as JSON in a string, which would be encoded twice if it stayed one. Nothing means none.

    Text that is no JSON object stays as it is: models write such, and a conversation must be able to go on after it.
    """
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        written = arguments
        try:
            arguments = json.loads(written, parse_constant=_no_constant) if written.strip() else None
        except (ValueError, RecursionError):
            return written
        if not isinstance(arguments, Mapping | None):
            return written
    if arguments is None:
        return {}
    if not isinstance(arguments, Mapping):
        raise FormatError("arguments must be a JSON object", param)
    return {key: _json(item, param) for key, item in _string_keys(arguments, param)}


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _tool(tool: Tool, param: str) -> dict[str, Any]:
    if not isinstance(tool, Mapping):
        raise FormatError("a tool must be an object", param)
    _function(tool, param)
    return {key: _json(item, f"{param}.{key}") for key, item in _string_keys(tool, param)}


def _json(value: Any, param: str, depth: int = 1) -> Any:
    """`value` in plain lists and dicts, checked to be JSON and not nested without end."""
    if depth > _DEEPEST:
        raise FormatError(f"nested more than {_DEEPEST} levels deep", param)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Mapping):
        return {key: _json(item, param, depth + 1) for key, item in _string_keys(value, param)}
    if _is_list(value):
        return [_json(item, param, depth + 1) for item in value]
    raise FormatError(f"{type(value).__name__} is no JSON", param)


def _string_keys(value: Mapping[Any, Any], param: str) -> list[tuple[str, Any]]:
    if not all(isinstance(key, str) for key in value):
        raise FormatError("keys must be strings", param)
    return list(value.items())


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)
