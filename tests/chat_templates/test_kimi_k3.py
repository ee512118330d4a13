"""Kimi K3: a word between two tokens as a tag, channels for answer and calls, and prompts by our template."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from chat_templates.checkpoint import CheckpointTemplate, read_template
from chat_templates.events import AnswerText, Event, ReasoningText, joined
from chat_templates.format import ChatFormat
from chat_templates.parser import OutputParser
from chat_templates.settings import PromptStyle
from server.modes.profile import PROFILE_FOLDER, load_profile, styles_of
from tests.chat_templates.foreign import tokenizer_json
from tests.chat_templates.tool_forms.forms import TOOLS
from tests.chat_templates.tool_forms.test_parsed import ids_of
from tests.chat_templates.tool_forms.test_reader import _calls_of

PROFILE = load_profile(PROFILE_FOLDER / "kimi_k3.toml")
TOKENS = ["<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"]
FILES = read_template(Path(__file__).parent, None, PROFILE.format)
assert FILES is not None
FMT = ChatFormat.of_checkpoint(
    tokenizer_json(TOKENS, []), CheckpointTemplate(FILES, PROFILE.format, styles_of(PROFILE.plain))
)
CALL = (
    '<|open|>tools<|sep|><|open|>call tool="weather" index="1"<|sep|><|open|>argument key="city" type="string"<|sep|>'
    'a < "b"<|close|>argument<|sep|><|open|>argument key="days" type="number"<|sep|>3<|close|>argument<|sep|>'
    "<|close|>call<|sep|><|close|>tools<|sep|>"
)
THOUGHT = "hm think<|close|>think<|sep|>"
SAID = "<|open|>response<|sep|>Look. <|close|>response<|sep|>"
END = "<|close|>message<|sep|><|end_of_msg|>"


def read(text: str, *, thinking: bool = True) -> tuple[str, str, list[Any]]:
    """At every split the same: the thinking, the answer, the calls."""
    ids = ids_of(FMT, text)
    found = []
    for cuts in ([], list(range(1, len(ids))), [len(ids) // 3, len(ids) // 2]):
        parser = OutputParser(FMT, thinking_open=thinking, call_id=lambda: "", tools=TOOLS, reopens=False)
        events: list[Event] = []
        for start, end in pairwise([0, *cuts, len(ids)]):
            events += parser.feed(ids[start:end])
        events = joined(events + parser.finish())
        thought = "".join(event.text for event in events if isinstance(event, ReasoningText))
        answer = "".join(event.text for event in events if isinstance(event, AnswerText))
        found.append((thought, answer, _calls_of(events)[0]))
    assert found[0] == found[1] == found[2]
    return found[0]


WEATHER = [("weather", {"city": 'a < "b"', "days": 3})]


@pytest.mark.parametrize(
    ("text", "thinking", "expected"),
    [
        (f"{THOUGHT}{SAID}{END}", True, ("hm think", "Look. ", [])),
        (f"{THOUGHT}{SAID}{CALL}{END}", True, ("hm think", "Look. ", WEATHER)),
        (f"Look. <|close|>response<|sep|>{CALL}{END}", False, ("", "Look. ", WEATHER)),
        ("cut off in the thought", True, ("cut off in the thought", "", [])),
        (f"{THOUGHT}<|open|>response<|sep|>tools and think", True, ("hm think", "tools and think", [])),
    ],
)
def test_channels(text: str, thinking: bool, expected: Any) -> None:
    assert read(text, thinking=thinking) == expected


def test_the_end_of_the_thinking_in_tokens() -> None:
    watch = FMT.think_end()
    ids = ids_of(FMT, "hm <|close|>thin<|sep|><|open|>think<|sep|><|close|>think<|sep|>x")
    at = [(index, tokens) for index, token_id in enumerate(ids) if (tokens := watch.feed(token_id))]
    tag = ids_of(FMT, "<|close|>think<|sep|>")
    assert at == [(len(ids) - 2, len(tag))]
    assert FMT.decode(FMT.close_thinking(), show_control=True) == "<|close|>think<|sep|><|open|>response<|sep|>"


TOOL = {"type": "function", "function": {"name": "weather", "description": "é", "parameters": {"b": 1, "a": [2]}}}
CALLS = [
    {"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"city": 'x "y"', "days": 3}}},
    {"id": "2", "type": "function", "function": {"name": "now", "arguments": {}}},
]


def test_a_prompt() -> None:
    conversation: list[Any] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi <|sep|>", "name": 'a"b'},
        {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": CALLS},
        {"role": "tool", "tool_call_id": "2", "content": "Noon"},
        {"role": "tool", "tool_call_id": "1", "content": "Sun"},
        {"role": "assistant", "content": "Sun."},
        {"role": "user", "content": "So?"},
    ]
    style = PromptStyle(opens_thinking=True, variables={"thinking": True}, added={"thinking_effort": "low"})
    ids = FMT.render(conversation, style, [TOOL])
    assert FMT.is_thinking_open(ids)
    text = FMT.decode(ids, show_control=True)
    head, _, rest = text.partition('<|open|>message role="system" type="thinking-effort"<|sep|>')
    assert head == (
        '<|open|>message role="system" type="tool-declare"<|sep|># Tools\nHere are the available tools, described in '
        'JSONSchema.\n\n```json\n[{"function":{"description":"é","name":"weather","parameters":{"a":[2],"b":1}},'
        f'"type":"function"}}]\n```{END}'
    )
    told, _, rest = rest.partition(END)
    assert told.endswith("`thinking_effort=low`.")
    assert rest == (
        f'<|open|>message role="system"<|sep|>Be brief.{END}'
        f'<|open|>message role="user" name="a&quot;b"<|sep|>Hi <|sep|>{END}'
        '<|open|>message role="assistant"<|sep|><|open|>think<|sep|>hm<|close|>think<|sep|><|open|>response<|sep|>'
        '<|close|>response<|sep|><|open|>tools<|sep|><|open|>call tool="weather" index="1"<|sep|>'
        '<|open|>argument key="city" type="string"<|sep|>x "y"<|close|>argument<|sep|>'
        '<|open|>argument key="days" type="number"<|sep|>3<|close|>argument<|sep|><|close|>call<|sep|>'
        f'<|open|>call tool="now" index="2"<|sep|><|close|>call<|sep|><|close|>tools<|sep|>{END}'
        f'<|open|>message role="tool" tool="weather" index="1"<|sep|>Sun{END}'
        f'<|open|>message role="tool" tool="now" index="2"<|sep|>Noon{END}'
        '<|open|>message role="assistant"<|sep|><|open|>think<|sep|><|close|>think<|sep|><|open|>response<|sep|>Sun.'
        f'<|close|>response<|sep|>{END}<|open|>message role="user"<|sep|>So?{END}'
        '<|open|>message role="assistant"<|sep|><|open|>think<|sep|>'
    )
    direct = FMT.render(conversation, PromptStyle(opens_thinking=False, variables={"thinking": False}), [TOOL])
    assert FMT.decode(direct, show_control=True).endswith('role="assistant"<|sep|><|open|>response<|sep|>')
    assert not FMT.is_thinking_open(direct)
