"""Conversations for templates that take turns with one call each, as gpt-oss' does.

That leaves out all calls of a turn but the first, and refuses text beside the thinking of a turn with a call.
"""

from collections.abc import Iterator, Sequence

from chat_templates.messages import Turn


def with_one_call(turns: Sequence[Turn]) -> list[Turn]:
    """A turn for each call, its result behind it; the text of a turn with calls is part of its thinking."""
    return list(_split(turns))


def _split(turns: Sequence[Turn]) -> Iterator[Turn]:
    rest = list(turns)
    while rest:
        turn = rest.pop(0)
        if not turn["tool_calls"]:
            yield turn
            continue
        results: list[Turn] = []
        while rest and rest[0]["role"] == "tool":
            results.append(rest.pop(0))
        thought = "\n\n".join(text for text in (turn["reasoning_content"], turn["content"]) if text)
        for call in turn["tool_calls"]:
            yield {**turn, "content": "", "reasoning_content": thought, "tool_calls": [call]}
            thought = ""
            place = _place_of(call["id"], results)
            if place is not None:
                yield results.pop(place)
        yield from results


def _place_of(call_id: str, results: Sequence[Turn]) -> int | None:
    """Where the result of a call is: by its id, else the next one that names no call."""
    by_id = [place for place, result in enumerate(results) if call_id and result["tool_call_id"] == call_id]
    unnamed = [place for place, result in enumerate(results) if not (call_id and result["tool_call_id"])]
    return next(iter([*by_id, *unnamed]), None)
