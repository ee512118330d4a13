"""The texts of a request, kept for the log of a server that was asked to log them."""

from collections.abc import Sequence

from chat_templates.events import AnswerText, Event, ReasoningText, ToolCallArguments, ToolCallStart

JsonObject = dict[str, object]


class Texts:
    """The body as it came, and what the choices say."""

    def __init__(self) -> None:
        self.body = ""
        self._choices: dict[int, list[Event]] = {}

    def add(self, choice: int, events: Sequence[Event]) -> None:
        """What some tokens add to a choice."""
        self._choices.setdefault(choice, []).extend(events)

    def choices(self) -> list[JsonObject]:
        """What each choice says: thinking, answer and tool calls, those that it has."""
        return [_said(self._choices[index]) for index in sorted(self._choices)]


def _said(events: Sequence[Event]) -> JsonObject:
    said: JsonObject = {}
    calls: dict[int, dict[str, str]] = {}
    reasoning = "".join(event.text for event in events if isinstance(event, ReasoningText))
    answer = "".join(event.text for event in events if isinstance(event, AnswerText))
    for event in events:
        if isinstance(event, ToolCallStart):
            calls[event.index] = {"name": event.name, "arguments": ""}
        elif isinstance(event, ToolCallArguments):
            calls[event.index]["arguments"] += event.text
    if reasoning:
        said["reasoning"] = reasoning
    if answer:
        said["answer"] = answer
    if calls:
        said["tool_calls"] = list(calls.values())
    return said
