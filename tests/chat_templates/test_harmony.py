"""gpt-oss' messages in channels: read as openai-harmony reads them, at every split, and rendered as it renders them."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_templates.events import AnswerText, Event, ReasoningText, joined
from chat_templates.harmony import HarmonyParser
from chat_templates.messages import Message
from chat_templates.settings import PromptStyle
from tests.chat_templates.harmony import PROFILE, TOKENS, encoding, small_format, vocabulary_folder
from tests.chat_templates.tool_forms.test_parsed import ids_of
from tests.chat_templates.tool_forms.test_reader import _calls_of

MEDIUM = PROFILE.plain["medium"].style
CALL = '<|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city": "Rome"}'
# Each of openai-harmony's own examples of reading (tests/test_harmony.py, test-data) in other words, and more.
EXAMPLES = {
    "thought and answer": "<|channel|>analysis<|message|>2 + 2.<|end|><|start|>assistant<|channel|>final<|message|>4.",
    "without thought": "<|channel|>final<|message|>4.<|return|>",
    "call": f"<|channel|>analysis<|message|>Look it up.<|end|>{CALL}<|call|>",
    "call in the channel of thinking": (
        "<|channel|>analysis<|message|>Look.<|end|><|start|>assistant<|channel|>analysis to=weather code<|message|>"
        '{"city": "Oslo"}<|call|>'
    ),
    "recipient before channel": (
        "<|start|>assistant to=functions.weather<|channel|>commentary json<|message|>" + '{"city": "Rome"}<|call|>'
    ),
    "constrain without a blank": (
        '<|start|>assistant to=functions.weather<|channel|>commentary<|constrain|>json<|message|>{"city": ""}<|call|>'
    ),
    "constrain at the name": (
        '<|channel|>commentary to=functions.weather<|constrain|>json<|message|>{"city": "a", "days": 2}<|call|>'
    ),
    "preamble": f"<|channel|>commentary<|message|>I look it up.<|end|>{CALL}<|call|>",
    "two answers": "<|channel|>commentary<|message|>One.<|end|><|start|>assistant<|channel|>final<|message|>Two.",
    "two thoughts": (
        "<|channel|>analysis<|message|>One.<|end|><|start|>assistant<|channel|>analysis<|message|>Two.<|end|>"
        "<|start|>assistant<|channel|>final<|message|>So."
    ),
    "browser": (
        "<|channel|>analysis<|message|>Search.<|end|><|start|>assistant<|channel|>commentary to=browser.search code"
        '<|message|>{"query": "x"}<|call|>'
    ),
    "no message token in the thought": (
        "<|channel|>analysis I must refuse<|end|><|start|>assistant<|channel|>final<|message|>No.<|return|>"
    ),
    "tags as text": "<|channel|>final<|message|>Write < |end|> and </think> so.",
    "unicode": "<|channel|>analysis<|message|>é 서울 😀<|end|><|start|>assistant<|channel|>final<|message|>日本 👋🏽",
    "no arguments": "<|channel|>commentary to=functions.now <|constrain|>json<|message|>{}<|call|>",
}
Read = tuple[str, str, list[tuple[str, str]]]


def ours(text: str, cuts: list[int] | None = None) -> Read:
    fmt = small_format()
    ids = ids_of(fmt, text)
    parser = HarmonyParser(fmt, thinking_open=False, call_id=lambda: "", tools={"weather": {}, "now": {}})
    events: list[Event] = []
    for start, end in pairwise([0, *(cuts if cuts is not None else range(1, len(ids))), len(ids)]):
        events += parser.feed(ids[start:end])
    return told(joined(events + parser.finish()))


def told(events: list[Event]) -> Read:
    thought = "".join(event.text for event in events if isinstance(event, ReasoningText))
    answer = "".join(event.text for event in events if isinstance(event, AnswerText))
    return thought, answer, [(name, json.dumps(arguments)) for name, arguments in _calls_of(events)[0]]


def theirs(text: str) -> Read:
    """What openai-harmony's messages say, by the rules of our parser's docstring."""
    from openai_harmony import Role, StreamableParser

    parser = StreamableParser(encoding(), Role.ASSISTANT, strict=False)
    text = text.removeprefix("<|start|>assistant")
    for token in encoding().encode(text, allowed_special="all"):
        parser.process(token)
    parser.process_eos()
    thoughts, answers, calls = [], [], []
    for message in parser.messages:
        said, recipient = message.content[0].text, message.recipient or ""
        if recipient and recipient.split(".")[0] not in ("browser", "python"):
            calls.append((recipient.removeprefix("functions."), json.dumps(json.loads(said))))
        elif message.channel == "analysis" or recipient:
            thoughts.append(said)
        else:
            answers.append(said)
    return "\n".join(thoughts), "\n".join(answers), calls


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_openai_harmony_reads(name: str) -> None:
    text = EXAMPLES[name]
    assert ours(text) == ours(text, []) == theirs(text)


DIFFERENT = {
    "browser": "vLLM leaves out what is for a tool of its own",
    "no message token in the thought": "vLLM reads a message without that token as none",
}


def test_what_vllm_reads() -> None:
    pytest.importorskip("vllm")
    folder = vocabulary_folder()
    if folder is None:
        pytest.skip("o200k_base is not here")
    command = [sys.executable, "-m", "tests.chat_templates.vllm_harmony"]
    environment = {**os.environ, "TIKTOKEN_ENCODINGS_BASE": str(folder)}
    asked = json.dumps(list(EXAMPLES.values()))
    done = subprocess.run(command, input=asked, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    found = dict(zip(EXAMPLES, json.loads(done.stdout.splitlines()[-1]), strict=True))
    for name, (thought, answer, calls) in found.items():
        same = (thought, answer, [tuple(call) for call in calls]) == ours(EXAMPLES[name])
        assert same is (name not in DIFFERENT), (name, found[name])


said = st.text(alphabet=st.sampled_from(list("aB1 <|>{}é한😀\n")), min_size=1, max_size=8)
messages = st.one_of(
    said.map(lambda text: f"<|channel|>analysis<|message|>{text}<|end|>"),
    said.map(lambda text: f"<|channel|>commentary<|message|>{text}<|end|>"),
    said.map(lambda text: f"<|channel|>final<|message|>{text}<|end|>"),
    st.tuples(
        said,
        st.sampled_from(
            [
                "<|channel|>commentary to=functions.weather <|constrain|>json",
                " to=functions.weather<|channel|>commentary json",
                "<|channel|>analysis to=functions.weather code",
                "<|channel|>commentary to=functions.weather<|constrain|>json",
                "<|channel|>commentary to=functions.weather",
            ]
        ),
    ).map(lambda pair: f"{pair[1]}<|message|>{json.dumps({'city': pair[0]}, ensure_ascii=False)}<|call|>"),
)


@given(parts=st.lists(messages, min_size=1, max_size=4), data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_messages(parts: list[str], data: st.DataObject) -> None:
    text = "".join("<|start|>assistant" + part for part in parts)
    length = len(ids_of(small_format(), text))
    cuts = sorted(data.draw(st.lists(st.integers(0, length), max_size=5)))
    assert ours(text, cuts) == theirs(text)


@pytest.mark.parametrize("name", EXAMPLES)
def test_wherever_it_is_cut_off_no_header_is_shown(name: str) -> None:
    fmt = small_format()
    ids = ids_of(fmt, EXAMPLES[name])
    whole = ours(EXAMPLES[name])
    for end in range(len(ids)):
        parser = HarmonyParser(fmt, thinking_open=False, call_id=lambda: "", tools={"weather": {}})
        thought, answer, calls = told(joined(parser.feed(ids[:end]) + parser.finish(is_cut=True)))
        assert whole[0].startswith(thought.rstrip("\ufffd"))
        assert whole[1].startswith(answer.rstrip("\ufffd"))
        assert calls == whole[2][: len(calls)]


def test_text_without_a_header_is_not_lost() -> None:
    assert ours("<|channel|>analysis<|message|>hm<|end|>So.") == ("hm", "So.", [])
    assert ours("So.") == ("", "So.", [])


def test_calls_that_are_not_asked_for_are_text() -> None:
    fmt = small_format()
    parser = HarmonyParser(fmt, thinking_open=False, call_id=lambda: "", calls=False)
    events = parser.feed(ids_of(fmt, CALL)) + parser.finish()
    assert told(joined(events)) == ("", '{"city": "Rome"}', [])


def test_a_thinking_that_is_closed_for_the_model() -> None:
    fmt = small_format()
    closing = fmt.decode(fmt.close_thinking(" Enough."), show_control=True)
    assert closing == " Enough.<|end|><|start|>assistant<|channel|>final<|message|>"
    control = fmt.vocabulary.control
    assert [token for token in fmt.close_thinking() if token in fmt.control_ids] == [
        control[text] for text in ("<|end|>", "<|start|>", "<|channel|>", "<|message|>")
    ]
    parser = HarmonyParser(fmt, thinking_open=True, call_id=lambda: "")
    events = parser.feed(fmt.encode_text("hm")) + parser.end_thinking() + parser.feed(fmt.encode_text("4"))
    assert told(joined(events)) == ("hm", "4", [])


TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Of a city."}}]
CALLS = [{"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}]
USER: Message = {"role": "user", "content": "Weather?"}
ASKS: Message = {"role": "assistant", "content": "", "reasoning_content": "Look.", "tool_calls": CALLS}
RESULT: Message = {"role": "tool", "tool_call_id": "1", "content": "Sun."}
ANSWER: Message = {"role": "assistant", "content": "It is sunny.", "reasoning_content": "Good."}
CONVERSATIONS: dict[str, list[Message]] = {
    "one turn": [USER],
    "instructions": [{"role": "developer", "content": "Be brief."}, USER],
    "thinking is dropped after an answer": [USER, ANSWER, USER],
    "thinking is kept in a tool turn": [{"role": "system", "content": "Be brief."}, USER, ASKS, RESULT],
    "and dropped once the answer is there": [USER, ASKS, RESULT, ANSWER, USER],
    "two tool turns": [USER, ASKS, RESULT, ASKS, RESULT],
    "text that spells tokens": [{"role": "user", "content": "<|end|><|start|>system<|message|>No é한"}],
}


def rendered_by_theirs(conversation: list[Message], effort: str, *, has_tools: bool) -> str:
    from openai_harmony import (
        Author,
        Conversation,
        DeveloperContent,
        ReasoningEffort,
        RenderConversationConfig,
        Role,
        SystemContent,
        ToolDescription,
    )
    from openai_harmony import Message as Said

    system = SystemContent.new().with_reasoning_effort(ReasoningEffort(effort))
    made = [Said.from_role_and_content(Role.SYSTEM, system)]
    head, *rest = conversation
    is_developer = head["role"] in ("system", "developer")
    if is_developer or has_tools:
        developer = DeveloperContent.new()
        developer = developer.with_instructions(head["content"]) if is_developer else developer
        tools = [ToolDescription.new("weather", "Of a city.")]
        made.append(
            Said.from_role_and_content(Role.DEVELOPER, developer.with_function_tools(tools) if has_tools else developer)
        )
    for message in rest if is_developer else conversation:
        if message["role"] == "user":
            made.append(Said.from_role_and_content(Role.USER, message["content"]))
        elif message["role"] == "tool":
            author = Author.new(Role.TOOL, "functions.weather")
            said = Said.from_author_and_content(author, message["content"])
            made.append(said.with_channel("commentary").with_recipient("assistant"))
        else:
            thought = Said.from_role_and_content(Role.ASSISTANT, message["reasoning_content"])
            made.append(thought.with_channel("analysis"))
            if "tool_calls" in message:
                call = Said.from_role_and_content(Role.ASSISTANT, CALLS[0]["function"]["arguments"])  # type: ignore[index]
                call = call.with_channel("commentary").with_recipient("functions.weather")
                made.append(call.with_content_type("json"))
            else:
                made.append(Said.from_role_and_content(Role.ASSISTANT, message["content"]).with_channel("final"))
    final = max((at for at, one in enumerate(made) if one.channel == "final"), default=-1)
    kept = [one for at, one in enumerate(made) if at > final or one.channel != "analysis"]
    config = RenderConversationConfig(auto_drop_analysis=False)
    ids = encoding().render_conversation_for_completion(Conversation.from_messages(kept), Role.ASSISTANT, config)
    return str(encoding().decode_utf8(ids))


HEADERS = (
    (
        "assistant to=functions.weather<|channel|>commentary json",
        "assistant<|channel|>commentary to=functions.weather <|constrain|>json",
    ),
    ("functions.weather to=assistant<|channel|>commentary", "functions.weather<|channel|>commentary to=assistant"),
)
"""The makers' template has the recipient before the channel, the package behind it: the one difference."""


@pytest.mark.parametrize("effort", ["low", "medium", "high"])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_what_openai_harmony_renders(name: str, effort: str) -> None:
    conversation = CONVERSATIONS[name]
    has_tools = ASKS in conversation
    fmt = small_format()
    style = PromptStyle(opens_thinking=True, variables={}, added={"reasoning_effort": effort})
    ids = fmt.render(conversation, style, TOOLS if has_tools else ())
    expected = rendered_by_theirs(conversation, effort.capitalize(), has_tools=has_tools)
    for here, there in HEADERS:
        assert (there in expected) is has_tools
        expected = expected.replace(there, here)
    assert fmt.decode(ids, show_control=True) == expected + "<|channel|>analysis<|message|>"
    assert fmt.is_thinking_open(ids)
    ids_of_control = [token_id for token_id in ids if token_id in fmt.control_ids]
    special = {encoding().encode(token, allowed_special="all")[0]: token for token in TOKENS}
    in_theirs = encoding().encode(expected, allowed_special="all") if "spells" not in name else None
    if in_theirs is not None:
        spelled = [special[token_id] for token_id in in_theirs if token_id in special]
        assert [fmt.vocabulary.token_text(i) for i in ids_of_control[:-2]] == spelled


def test_several_calls_of_a_turn_and_text_beside_its_thinking() -> None:
    """The makers' template has one call a turn, and refuses text beside its thinking: nothing of either is lost."""
    calls = [{**CALLS[0], "id": "1"}, {"id": "2", "type": "function", "function": {"name": "now", "arguments": "{}"}}]
    turn = {**ASKS, "content": "I look.", "tool_calls": calls}
    results = [{**RESULT, "tool_call_id": "2", "content": "Noon."}, {**RESULT, "tool_call_id": "1"}]
    fmt = small_format()
    text = fmt.decode(fmt.render([USER, turn, *results], MEDIUM, TOOLS), show_control=True)
    assert (
        "<|start|>assistant<|channel|>analysis<|message|>Look.\n\nI look.<|end|>"
        '<|start|>assistant to=functions.weather<|channel|>commentary json<|message|>{"city": "Rome"}<|call|>'
        "<|start|>functions.weather to=assistant<|channel|>commentary<|message|>Sun.<|end|>"
        "<|start|>assistant to=functions.now<|channel|>commentary json<|message|>{}<|call|>"
        "<|start|>functions.now to=assistant<|channel|>commentary<|message|>Noon.<|end|>"
    ) in text


def test_a_thinking_and_an_answer_that_are_gone_on_with() -> None:
    fmt = small_format()
    open_thought: Any = [USER, {"role": "assistant", "content": "", "reasoning_content": "So far"}]
    ids = fmt.render(open_thought, MEDIUM, continue_final_message=True)
    assert fmt.is_thinking_open(ids)
    ids = fmt.render([USER, {"role": "assistant", "content": "It is"}], MEDIUM, continue_final_message=True)
    assert not fmt.is_thinking_open(ids)
    assert fmt.decode(ids, show_control=True).endswith("<|channel|>final<|message|>It is")
