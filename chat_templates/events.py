"""What the parser reports of a generation, in order. Turning it into OpenAI's deltas is the front end's part."""

import msgspec


class ReasoningText(msgspec.Struct, frozen=True):
    """More of the thinking; never empty."""

    text: str


class AnswerText(msgspec.Struct, frozen=True):
    """More of the answer; never empty."""

    text: str


class ToolCallStart(msgspec.Struct, frozen=True):
    """A tool call; `index` counts from 0, `id` is new and unique."""

    index: int
    id: str
    name: str


class ToolCallArguments(msgspec.Struct, frozen=True):
    """More of the JSON text of a call's arguments; never empty."""

    index: int
    text: str


class ToolCallEnd(msgspec.Struct, frozen=True):
    """`complete` is False where the generation ended, or changed the subject, within the arguments."""

    index: int
    complete: bool


Event = ReasoningText | AnswerText | ToolCallStart | ToolCallArguments | ToolCallEnd


def joined(events: list[Event]) -> list[Event]:
    """The same with neighbours of one kind made one."""
    result: list[Event] = []
    for event in events:
        last = result[-1] if result else None
        match last, event:
            case ReasoningText(before), ReasoningText(text):
                result[-1] = ReasoningText(before + text)
            case AnswerText(before), AnswerText(text):
                result[-1] = AnswerText(before + text)
            case ToolCallArguments(index, before), ToolCallArguments(same, text) if index == same:
                result[-1] = ToolCallArguments(index, before + text)
            case _:
                result.append(event)
    return result
