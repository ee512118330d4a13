"""A reference for the parser: the same rules for a whole generation at once, as substitutions in one string."""

import json
import re
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from chat_templates.events import AnswerText, Event, ReasoningText, ToolCallArguments, ToolCallEnd, ToolCallStart
from chat_templates.format import ChatFormat
from chat_templates.tokens import replace_surrogates

# Single characters for tags: lone surrogates, which decoded text cannot hold.
T, E, C, X, K, F = "\udc90", "\udc91", "\udc92", "\udc93", "\udc94", "\udc95"
_MARKS = {"<think>": T, "</think>": E, "<tool_call>": C, "</tool_call>": X, "[|endofturn|]": F}
_SPELLINGS = {mark: tag for tag, mark in _MARKS.items()}
_STRING = r'"(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})+"'
_HEAD = re.compile(rf'\s*\{{\s*"name"\s*:\s*({_STRING})\s*,\s*"arguments"\s*:\s*(?=\{{)')


def reference_parse(fmt: ChatFormat, ids: Sequence[int], *, is_thinking: bool) -> list[Event]:
    """The events with each stretch of text in one; the ids of calls are empty."""
    text = "".join(
        "".join(_MARKS.get(fmt.vocabulary.token_text(token_id), "") for token_id in run)
        if is_control
        else fmt.decode(list(run))
        for is_control, run in groupby(ids, fmt.control_ids.__contains__)
    )
    calls: list[list[Event]] = []
    text = _resolved(text, calls, is_thinking=is_thinking)
    text = f"{T}\n{text}" if is_thinking else text
    text = re.sub(f"({T}[^{E}]*{E})|{E}", r"\1", text)  # a </think> with nothing open
    text = re.sub(f"{T}\n", T, text)
    text = re.sub(f"{E}\n{{1,2}}", E, text)
    text = re.sub(f"{T}[^{E}]*", lambda match: T + match[0].replace(T, ""), text)  # a <think> within the thinking
    text = re.sub(f"\n([{K}{E}])", r"\1", text)
    events: list[Event] = []
    kind: type[ReasoningText | AnswerText] = AnswerText
    waiting = iter(calls)
    for piece in re.findall(f"[{T}{E}{K}]|[^{T}{E}{K}]+", text):
        if piece == K:
            events += next(waiting)
        elif piece in (T, E):
            kind = ReasoningText if piece == T else AnswerText
        else:
            events.append(kind(piece))
    return events


def _resolved(text: str, calls: list[list[Event]], *, is_thinking: bool) -> str:
    """The same with a mark for each call, and the tags that are text spelled out."""
    made, at, has_answered = "", 0, False
    while at < len(text):
        char = text[at]
        at += 1
        if char == C:
            events, rest, at = _section(text, at, len(calls), is_thinking=is_thinking)
            if events:
                calls.append(events)
                made += K
            made += rest
            has_answered = has_answered or (not is_thinking and bool(events or rest.strip()))
        elif char == E and not is_thinking:
            made += _SPELLINGS[E] if has_answered else E
        elif char in (T, E):
            if char == T and not (is_thinking or has_answered):
                made = made.removesuffix("\n")  # nothing but white space came before the thinking
            made += char
            is_thinking = char == T
        elif char not in _SPELLINGS:
            made += char
            has_answered = has_answered or not (is_thinking or char.isspace())
    return made


def _section(text: str, at: int, index: int, *, is_thinking: bool) -> tuple[list[Event], str, int]:
    """Of what stands after an opening tag: the events, text that is settled to be text, and where reading goes on."""
    ends = (T, F, E) if is_thinking else (T, F)
    start = _after_space(text, at, ends)
    if text[start : start + 1] != "{":
        return [], "".join(char for char in text[at:start] if char != E), start
    spelled, places, is_whole = _object(text, start, ends)
    head = _HEAD.match(spelled, 0, 512)
    if head is not None:
        arguments, places, is_whole = _object(text, places[head.end()], ends)
        events = _events(index, json.loads(head[1]), arguments, complete=is_whole)
        at = places[-1]
        if is_whole:
            after = _after_space(text, at, ends)
            at = after + 1 if text[after : after + 1] == "}" else at
    else:
        call = _whole(spelled) if is_whole else None
        if call is None:
            return [], "".join(char for char in text[at:start] if char != E) + spelled, places[-1]
        events = _events(index, *call, complete=True)
        at = places[-1]
    after = _after_space(text, at, ends)
    if text[after : after + 1] == X:
        return events, "", after + 1
    if after == len(text) or text[after] in ends:
        return events, "", after
    return events, "".join(char for char in text[at:after] if char != E), after


def _after_space(text: str, at: int, ends: tuple[str, ...]) -> int:
    """Where white space ends; a </think> that ends nothing is left out."""
    while at < len(text) and (text[at] in " \t\r\n" or (text[at] == E and E not in ends)):
        at += 1
    return at


def _object(text: str, at: int, ends: tuple[str, ...]) -> tuple[str, list[int], bool]:
    """A JSON object with the tags in its strings spelled out; where each of its characters stands, and its end; whether
    it came to its end.
    """
    spelled = ""
    places: list[int] = []
    depth, is_string, is_escaped = 0, False, False
    while at < len(text):
        char = text[at]
        ends_here = char in ends if char in (F, E) else char in _SPELLINGS and not is_string
        if ends_here:
            return spelled, [*places, at], False
        if char in _SPELLINGS and not is_string:
            at += 1
            continue
        written = _SPELLINGS.get(char, char)
        spelled += written
        places += [at] * len(written)
        at += 1
        if is_escaped:
            is_escaped = False
        elif is_string:
            is_escaped, is_string = char == "\\", char != '"'
        elif char == '"':
            is_string = True
        elif char in "{[":
            depth += 1
        elif char in "}]":
            depth -= 1
            if depth == 0:
                return spelled, [*places, at], True
    return spelled, [*places, at], False


def _events(index: int, name: str, arguments: str, *, complete: bool) -> list[Event]:
    start = ToolCallStart(index, "", replace_surrogates(name))
    return [start, ToolCallArguments(index, arguments), ToolCallEnd(index, complete)]


def _whole(body: str) -> tuple[str, str] | None:
    try:
        call: Any = json.loads(body)
        if isinstance(call["arguments"], str):
            call["arguments"] = json.loads(call["arguments"])
    except KeyError:
        call["arguments"] = {}
    except (ValueError, TypeError):
        return None
    match call:
        case {"name": str(name), "arguments": dict() | None as arguments} if name and len(call) == 2:
            try:
                text = json.dumps(arguments or {}, ensure_ascii=False, allow_nan=False)
            except ValueError:
                return None
            return name, replace_surrogates(text)
    return None
