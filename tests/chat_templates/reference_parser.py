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
    text = _with_text_tags(text, is_thinking=is_thinking).replace(F, X)
    text = f"{T}\n{text}" if is_thinking else text
    text = re.sub(f"({T}[^{E}]*{E})|{E}", r"\1", text)  # a </think> with nothing open
    text = re.sub(f"({C}[^{C}{X}{T}{E}]*{X})|{X}", r"\1", text)  # the end of a call with none open
    text = re.sub(f"{T}\n", T, text)
    text = re.sub(f"{E}\n{{1,2}}", E, text)
    calls: list[list[Event]] = []

    def resolve(match: re.Match[str]) -> str:
        events, rest = _call(match[1], len(calls))
        if not events:
            return match[1]
        calls.append(events)
        return f"{K}{rest}"

    text = re.sub(f"{C}([^{C}{X}{T}{E}]*){X}?", resolve, text)
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


def _with_text_tags(text: str, *, is_thinking: bool) -> str:
    """The same with the tags that are text spelled out: within a string of a call, or a late </think>."""
    made, body, has_answered = "", "", False
    is_call = False
    for char in text:
        is_text = char not in _SPELLINGS
        if is_call and not is_text and _ends_in_string(body):
            is_text = char != F and not (is_thinking and char == E)
        elif char == E and not is_thinking and not is_call:
            is_text = has_answered
        if is_text:
            written = _SPELLINGS.get(char, char)
            made += written
            if is_call:
                body += written
            elif not is_thinking:
                has_answered = has_answered or not written.isspace()
            continue
        made += char
        if is_call and not (char == E and not is_thinking):
            has_answered = has_answered or (not is_thinking and bool(_call(body, 0)[0] or body.strip()))
            is_call, body = False, ""
        is_call = is_call or char == C
        is_thinking = char == T or (is_thinking and char != E)
    return made


def _ends_in_string(body: str) -> bool:
    """Whether the arguments of a call that is cut off there end within a string."""
    head = _HEAD.match(body, 0, 512)
    depth = 0
    for token in re.finditer(r'"(?:[^"\\]|\\.)*(?:"|\\?\Z)|[{}]', body[head.end() :] if head else "", re.DOTALL):
        if token[0][0] == '"' and not re.fullmatch(r'"(?:[^"\\]|\\.)*"', token[0], re.DOTALL):
            return True
        depth += {"{": 1, "}": -1}.get(token[0], 0)
        if depth == 0 and token[0] == "}":
            return False
    return False


def _call(body: str, index: int) -> tuple[list[Event], str]:
    """The events of one call and the text after its JSON; no events if it is none."""
    head = _HEAD.match(body, 0, 512)
    if head is None:
        call = _whole(body)
        return ([], body) if call is None else (_events(index, *call, complete=True), "")
    arguments, depth = body[head.end() :], 0
    for token in re.finditer(r'"(?:[^"\\]|\\.)*(?:"|\\?\Z)|[{}]', arguments, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(token[0], 0)
        if depth == 0 and token[0] == "}":
            rest = arguments[token.end() :]
            rest = "" if rest.strip() in ("", "}") else rest
            return _events(index, json.loads(head[1]), arguments[: token.end()], complete=True), rest
    return _events(index, json.loads(head[1]), arguments, complete=False), ""


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
            text = json.dumps(arguments or {}, ensure_ascii=False)
            return None if "NaN" in text else (name, replace_surrogates(text))
    return None
