"""Difficult generations, split in two at every place: streams and plain responses have everything, each piece once."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from chat_templates.format import ChatFormat
from chat_templates.settings import DIRECT, THINKING
from tests.fake_engine import FakeEngine, script_of
from tests.server.conftest import HELLO, Client, body
from tests.server.test_streaming import events_of, gathered, plain

CHAT = "/v1/chat/completions"
TOOLS = [{"type": "function", "function": {"name": "f"}}]
CALL = '<tool_call>{"name": "f", "arguments": {"a": "</think> é}"}}</tool_call>'
ARGUMENTS = '{"a": "‹/think> é}"}'.replace("‹", "<")
TAG = re.compile(r"(<think>|</think>|<tool_call>|</tool_call>)")


class Case(NamedTuple):
    """What the model writes, `«…»` around text that spells tags, and what a client sees of it."""

    written: str
    reasoning: str
    content: str
    calls: tuple[str, ...] = ()
    how: tuple[str, str | None] = ("stop", "natural")
    fields: Mapping[str, Any] = MappingProxyType({})


CODE = "```\n</think>\n<tool_call>{}\n```"
REASONING = [
    Case("a😀é\n</think>\n\n한😀", "a😀é", "한😀"),
    Case("«<think>»«</thi»nk> </\n</think>\n\n«</think>»«<tool_»", "<think></think> </", "</think><tool_"),
    Case(f"see «{CODE}»\n</think>\n\n«{CODE}»", f"see {CODE}", CODE),
    Case(f"so\n{CALL}on\n</think>\n\nyes", "soon", "yes", (ARGUMENTS,), ("tool_calls", "natural")),
    Case(f"so{CALL}\n</think>\n\n{CALL}\n{CALL}", "so", "", (ARGUMENTS,) * 3, ("tool_calls", "natural")),
    Case("never ends 😀 stop", "never ends 😀 stop", "", (), ("stop", "stopped")),
    Case("the stop\n</think>\n\n4 stop 5", "the stop", "4", (), ("stop", "natural"), {"stop": [" stop", "stop"]}),
    Case("a\n</think>\n\nb\n</think>\n\nc", "a", "b\n</think>\n\nc", (), ("stop", "natural")),
    Case("</think>\n\n\n\nb\n\n", "", "\n\nb\n\n", (), ("stop", "natural")),
]
STANDARD = [
    Case("a😀é한", "", "a😀é한", (), ("stop", None)),
    Case(f"«{CODE}»", "", CODE, (), ("stop", None)),
    Case(f"yes\n{CALL}", "", "yes", (ARGUMENTS,), ("tool_calls", None)),
    Case("«<tool_call>»{}", "", "<tool_call>{}", (), ("stop", None)),
    Case("wait for it", "", "wait ", (), ("stop", None), {"stop": ["for i", "for it"]}),
    Case("12345", "", "12", (), ("length", None), {"max_tokens": 2}),
]


def ids_of(written: str, fmt: ChatFormat) -> list[int]:
    """The ids of a generation: tags as control tokens, but not within a call or `«…»`."""
    ids: list[int] = []
    for index, part in enumerate(re.split(r"«(.*?)»", written, flags=re.DOTALL)):
        if index % 2:
            ids += fmt.encode_text(part)
            continue
        for at, call in enumerate(re.split(r"<tool_call>(.*?)</tool_call>", part)):
            if at % 2:
                ids += [fmt.tool_call_id, *fmt.encode_text(call), fmt.tool_call_end_id]
                continue
            for piece in TAG.split(call):
                ids += [fmt.vocabulary.control[piece]] if TAG.fullmatch(piece) else fmt.encode_text(piece)
    return [*ids, fmt.end_of_turn_id]


@pytest.mark.parametrize(
    ("mode", "case"),
    [*(("reasoning", case) for case in REASONING), *(("standard", case) for case in STANDARD)],
    ids=lambda value: repr(value.written[:20]) if isinstance(value, Case) else str(value),
)
async def test_every_split(client: Client, fmt: ChatFormat, mode: str, case: Case) -> None:
    tools = TOOLS if case.calls else []
    ids = ids_of(case.written, fmt)
    script = script_of(ids, len(fmt.render(HELLO, THINKING if mode == "reasoning" else DIRECT, tools)))
    engine = FakeEngine(script, (fmt.end_of_turn_id,))
    asked = body(reasoning_mode=mode, **({"tools": tools} if tools else {}), **case.fields)
    streamed = {**asked, "stream": True, "stream_options": {"include_usage": True}}
    seen: list[dict[str, Any]] = []
    async with client(engine) as http:
        for cut in range(1, len(ids) + 1):
            engine.chunks = (cut, len(ids))
            seen += [
                plain((await http.post(CHAT, json=asked)).json()),
                gathered(events_of((await http.post(CHAT, json=streamed)).text)),
            ]
    for one in seen:
        (choice,) = one["choices"]
        assert (choice["reasoning"], choice["content"]) == (case.reasoning, case.content)
        assert choice["reasoning_content"] == case.reasoning
        assert tuple(call["arguments"] for call in choice["calls"]) == case.calls
        assert (choice["finish_reason"], choice["reasoning_finish_reason"]) == case.how
        assert one["usage"] == seen[0]["usage"]
