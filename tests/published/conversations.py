"""The conversations that are compared: system prompts, turns with and without past thinking, tools, calls, results."""

from typing import Any

Message = dict[str, Any]
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Its name"},
                    "days": {"type": "integer"},
                    "tags": {"type": "array", "items": {"type": "string"}},
                },
                "required": ["city"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "now",
            "description": "The time: «jetzt» 今",
            "parameters": {"type": "object", "properties": {}},
        },
    },
]


def call(index: int, name: str, arguments: dict[str, Any]) -> Message:
    """A call of a past turn."""
    return {"id": f"call_{index}", "type": "function", "function": {"name": name, "arguments": arguments}}


def answered(content: str, thought: str = "", calls: list[Message] | None = None) -> Message:
    """A past answer; its thinking under all names that templates look for."""
    message: Message = {"role": "assistant", "content": content}
    message |= dict.fromkeys(("reasoning_content", "reasoning", "thinking"), thought) if thought else {}
    return {**message, "tool_calls": calls} if calls else message


def result(index: int, name: str, content: str) -> Message:
    """What came of a call."""
    return {"role": "tool", "content": content, "tool_call_id": f"call_{index}", "name": name}


SYSTEM: Message = {"role": "system", "content": "Be kind & brief: {{ x }} 'y'"}
USER: Message = {"role": "user", "content": 'Wie wird\'s in Köln? 日本 👋🏽 <b> "x"\n\tok'}
NEXT: Message = {"role": "user", "content": "And now?"}
ONE = [call(1, "weather", {"city": '서울 "a" <c>', "days": 3})]
TWO = [*ONE, call(2, "now", {})]
CONVERSATIONS: dict[str, tuple[list[Message], bool]] = {
    "one question": ([USER], False),
    "system prompt": ([SYSTEM, USER], False),
    "turns": ([USER, answered("Gut."), NEXT], False),
    "past thinking": ([SYSTEM, USER, answered("Gut.", "So, so."), NEXT], False),
    "tools": ([SYSTEM, USER], True),
    "tools without system prompt": ([USER], True),
    "call and result": ([USER, answered("", "", ONE), result(1, "weather", '{"sky": "grau ☁"}')], True),
    "thinking before a call": ([SYSTEM, USER, answered("", "Look it up.", ONE), result(1, "weather", "rain")], True),
    "text beside a call": (
        [USER, answered("I look.", "", ONE), result(1, "weather", "rain"), answered("It rains."), NEXT],
        True,
    ),
    "two calls": ([USER, answered("", "", TWO), result(1, "weather", "rain"), result(2, "now", "12:00")], True),
}
"""Each with whether there are tools."""
