"""The incremental parser: the same events however the ids are cut, the rules one by one, nothing lost."""

import json
import re
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chat_templates.events import (
    AnswerText,
    Event,
    ReasoningText,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
    joined,
)
from chat_templates.format import ChatFormat
from chat_templates.parser import OutputParser, new_call_id
from chat_templates.tokens import TAGS
from tests.chat_templates.reference_parser import reference_parse
from tests.chat_templates.small_tokenizers import KINDS, make_format
from tests.chat_templates.strategies import hostile_text
from tests.styles import Mode

FORMATS = {kind: make_format(kind) for kind in KINDS}
FORMAT = FORMATS["byte_level"]
MODES: tuple[Mode, Mode] = ("standard", "reasoning")
_TAG = re.compile("(" + "|".join(map(re.escape, TAGS)) + ")")


def ids_of(text: str, fmt: ChatFormat = FORMAT) -> list[int]:
    """The ids of a generation written as text: tags as control tokens, `‹` for a `<` that is meant as text."""
    ids: list[int] = []
    for index, piece in enumerate(_TAG.split(text)):
        ids += [fmt.vocabulary.control[piece]] if index % 2 else fmt.encode_text(piece.replace("‹", "<"))
    return ids


def parse(ids: list[int], mode: Mode = "standard", fmt: ChatFormat = FORMAT, cuts: tuple[int, ...] = ()) -> list[Event]:
    """All events of a generation, fed in pieces, neighbours joined."""
    parser = OutputParser(fmt, thinking_open=mode == "reasoning", call_id=lambda: "")
    bounds = [0, *sorted(cut % (len(ids) + 1) for cut in cuts), len(ids)]
    events: list[Event] = []
    for start, end in pairwise(bounds):
        events += parser.feed(ids[start:end])
    events += parser.finish()
    assert all(event.text for event in events if isinstance(event, ReasoningText | AnswerText | ToolCallArguments))
    return joined(events)


def call(index: int, name: str, arguments: str, *, complete: bool = True) -> list[Event]:
    """The events of one call."""
    return [ToolCallStart(index, "", name), ToolCallArguments(index, arguments), ToolCallEnd(index, complete)]


_json_text = st.recursive(
    st.one_of(st.none(), st.integers(), st.text(max_size=5), st.sampled_from(["}", '"', "\\", "{"])),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=3), inner, max_size=2)),
    max_leaves=4,
)
_bodies = st.one_of(
    st.builds(lambda a: json.dumps({"name": "f", "arguments": a}, ensure_ascii=False), _json_text),
    st.builds(lambda a: json.dumps({"name": "f", "arguments": {"a": a}}, ensure_ascii=False), _json_text),
    st.builds(lambda a: json.dumps({"arguments": {"a": a}, "name": "é"}), _json_text),
    st.builds(lambda a: json.dumps({"name": "f", "arguments": json.dumps({"a": a})}), _json_text),
    st.sampled_from(
        ['{"name": "f"}', '{"name": "f", "arguments": {}, "id": 1}', "{}", '{"name": "f", "arguments": {}}}']
    ),
    st.sampled_from(
        ['{"name": "\\ud800", "arguments": {"a": "\\', '\n{"name" :"f" ,"arguments":\n{"a":[1}}', "[1]", "nul"]
    ),
)
_cut_bodies = st.builds(lambda body, end: body[: end % (len(body) + 1)], _bodies, st.integers(0, 200))
_pieces = st.one_of(
    st.sampled_from(["\n", "\n\n", "\n\n\n", "Hello", " the", "é", "😀", "[PAD]"]),
    st.sampled_from(["<think>", "</think>", "<tool_call>", "</tool_call>", "[|endofturn|]", "[|user|]"]),
    st.sampled_from(["<think>\n", "\n</think>\n\n"]),
    _bodies.map(lambda body: f"<tool_call>{body}</tool_call>"),
    _cut_bodies.map(lambda body: f"\n<tool_call>{body}"),
    _bodies,
)


@st.composite
def generations(draw: st.DrawFn, kinds: tuple[str, ...] = tuple(KINDS)) -> tuple[ChatFormat, list[int]]:
    """Ids with all that a model may do: tags in any order, text that spells them, ids that break characters."""
    fmt = FORMATS[draw(st.sampled_from(kinds))]
    ids: list[int] = []
    for piece in draw(
        st.lists(st.one_of(_pieces, hostile_text.map(fmt.encode_text), st.integers(0, 420)), max_size=10)
    ):
        if isinstance(piece, str):
            ids += ids_of(piece, fmt)
        else:
            ids += [piece] if isinstance(piece, int) else piece
    return fmt, ids


@given(generations(), st.sampled_from(MODES), st.lists(st.integers(0, 99), max_size=6))
def test_cuts_change_nothing(generation: tuple[ChatFormat, list[int]], mode: Mode, cuts: list[int]) -> None:
    fmt, ids = generation
    whole = parse(ids, mode, fmt)
    assert parse(ids, mode, fmt, tuple(cuts)) == whole
    assert parse(ids, mode, fmt, tuple(range(len(ids)))) == whole


@example(
    (FORMATS["byte_level"], ids_of("\n", FORMATS["byte_level"]) + ids_of("<think>", FORMATS["byte_level"])), "standard"
)
@given(generations(), st.sampled_from(MODES))
def test_equals_the_reference(generation: tuple[ChatFormat, list[int]], mode: Mode) -> None:
    fmt, ids = generation
    expected = reference_parse(fmt, ids, is_thinking=mode == "reasoning")
    assert parse(ids, mode, fmt) == joined(expected), fmt.decode(ids, show_control=True)


@given(st.lists(hostile_text, max_size=5), st.sampled_from(MODES), st.sampled_from(["byte_level", "whole_words"]))
def test_text_that_spells_tags_stays_text(texts: list[str], mode: Mode, kind: str) -> None:
    fmt = FORMATS[kind]
    ids = [token_id for text in texts for token_id in fmt.encode_text(text)]
    events = parse(ids, mode, fmt)
    kinds = {"standard": AnswerText, "reasoning": ReasoningText}
    assert events == [kinds[mode](fmt.decode(ids))] * bool(ids)


RULES: list[tuple[str, Mode, str, list[Event]]] = [
    ("answer", "standard", "Hello[|endofturn|]", [AnswerText("Hello")]),
    ("no newline of an answer is lost", "standard", "\n\nHello\n\n[|endofturn|]", [AnswerText("\n\nHello\n\n")]),
    (
        "reasoning",
        "reasoning",
        "So.\n\nYes.\n</think>\n\nHello[|endofturn|]",
        [ReasoningText("So.\n\nYes."), AnswerText("Hello")],
    ),
    (
        "newlines beyond those of the tags stay",
        "reasoning",
        "\nSo.\n\n</think>\n\n\nHello",
        [ReasoningText("\nSo.\n"), AnswerText("\nHello")],
    ),
    ("fewer newlines than usual", "reasoning", "So.</think>\nHello", [ReasoningText("So."), AnswerText("Hello")]),
    ("no thinking", "reasoning", "</think>\n\nHello", [AnswerText("Hello")]),
    ("no answer", "reasoning", "So.\n</think>\n\n[|endofturn|]", [ReasoningText("So.")]),
    ("thinking without end", "reasoning", "So.\n", [ReasoningText("So.\n")]),
    ("thinking that ends the turn", "reasoning", "So.[|endofturn|]", [ReasoningText("So.")]),
    (
        "the model opens a block itself",
        "standard",
        "<think>\nSo.\n</think>\n\nHello",
        [ReasoningText("So."), AnswerText("Hello")],
    ),
    (
        "in the midst of an answer",
        "standard",
        "Hm\n<think>\nSo.\n</think>\n\nHello",
        [AnswerText("Hm\n"), ReasoningText("So."), AnswerText("Hello")],
    ),
    ("and again", "reasoning", "<think>\nSo.\n</think>\n\nHello", [ReasoningText("So."), AnswerText("Hello")]),
    ("end without a block", "standard", "</think>\nHello", [AnswerText("\nHello")]),
    ("end within the answer", "standard", "Hel</think>lo", [AnswerText("Hel</think>lo")]),
    (
        "end after the answer began",
        "reasoning",
        "So.</think>Hi</think>",
        [ReasoningText("So."), AnswerText("Hi</think>")],
    ),
    (
        "tags in a string of a call",
        "standard",
        '<tool_call>{"name": "f", "arguments": {"a": "<tool_call></tool_call><think></think>"}}</tool_call>',
        call(0, "f", '{"a": "<tool_call></tool_call><think></think>"}'),
    ),
    (
        "and in the thinking, whose end counts",
        "reasoning",
        '<tool_call>{"name": "f", "arguments": {"a": "</tool_call>b</think>Hi',
        [*call(0, "f", '{"a": "</tool_call>b', complete=False), AnswerText("Hi")],
    ),
    ("tags as text", "reasoning", "‹/think>\n</think>\n\n‹think>", [ReasoningText("</think>"), AnswerText("<think>")]),
    ("after the end of the turn", "standard", "Hel[|endofturn|]lo", [AnswerText("Hello")]),
    ("other control tokens", "standard", "Hel[|user|]lo<tool_result>", [AnswerText("Hello")]),
    (
        "calls",
        "standard",
        (
            'Look:\n<tool_call>{"name": "f", "arguments": {"a": "}\\""}}</tool_call>'
            '\n<tool_call>{"name": "g", "arguments": {}}</tool_call>[|endofturn|]'
        ),
        [AnswerText("Look:"), *call(0, "f", '{"a": "}\\""}'), *call(1, "g", "{}")],
    ),
    (
        "calls within the thinking",
        "reasoning",
        'So\n<tool_call>{"name": "f", "arguments": {}}</tool_call>\nand\n</think>\n\nHello',
        [ReasoningText("So"), *call(0, "f", "{}"), ReasoningText("\nand"), AnswerText("Hello")],
    ),
    (
        "a call that the end of thinking ends",
        "reasoning",
        'So<tool_call>{"name": "f", "arguments": {"a"</think>\n\nHello',
        [ReasoningText("So"), *call(0, "f", '{"a"', complete=False), AnswerText("Hello")],
    ),
    (
        "a call cut off",
        "standard",
        '<tool_call>{"name": "f", "arguments": {"a": "b',
        call(0, "f", '{"a": "b', complete=False),
    ),
    ("a call cut off after its JSON", "standard", '<tool_call>{"name": "f", "arguments": {}}', call(0, "f", "{}")),
    ("a call cut off before its name", "standard", 'A\n<tool_call>{"name": "f', [AnswerText('A\n{"name": "f')]),
    ("no JSON", "standard", "A\n<tool_call>f(1)</tool_call>\nB", [AnswerText("A\nf(1)\nB")]),
    ("no JSON within the thinking", "reasoning", "A <tool_call>f(1)</tool_call>", [ReasoningText("A f(1)")]),
    ("JSON but no call", "standard", "<tool_call>[1]</tool_call>", [AnswerText("[1]")]),
    ("no name", "standard", '<tool_call>{"arguments": {}}</tool_call>', [AnswerText('{"arguments": {}}')]),
    (
        "no number",
        "standard",
        '<tool_call>{"arguments": {"a": NaN}, "name": "f"}',
        [AnswerText('{"arguments": {"a": NaN}, "name": "f"}')],
    ),
    (
        "more than a call",
        "standard",
        '<tool_call>{"name": "f", "arguments": {}, "id": 7}</tool_call>',
        [*call(0, "f", "{}"), AnswerText(', "id": 7}')],
    ),
    (
        "arguments first",
        "standard",
        '<tool_call>{"arguments": {"a":"é"}, "name": "f"}</tool_call>',
        call(0, "f", '{"a": "é"}'),
    ),
    (
        "arguments encoded twice",
        "standard",
        '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>',
        call(0, "f", '{"a": 1}'),
    ),
    ("no arguments", "standard", '<tool_call>{"name": "f"}</tool_call>', call(0, "f", "{}")),
    (
        "a bad call does not count",
        "standard",
        '<tool_call></tool_call><tool_call>{"name": "f", "arguments": {}}</tool_call>',
        call(0, "f", "{}"),
    ),
    (
        "a call within a call",
        "standard",
        '<tool_call>{"name": "f", "arguments": {<tool_call>{"name": "g", "arguments": {}}</tool_call>',
        [*call(0, "f", "{", complete=False), *call(1, "g", "{}")],
    ),
    (
        "a name too long to look for as it comes",
        "standard",
        f'<tool_call>{{"name": "{"f" * 600}", "arguments": {{}}}}</tool_call>',
        call(0, "f" * 600, "{}"),
    ),
]


@pytest.mark.parametrize(("mode", "text", "expected"), [rule[1:] for rule in RULES], ids=[rule[0] for rule in RULES])
@pytest.mark.parametrize("kind", ["byte_level", "whole_words"])
def test_rule(kind: str, mode: Mode, text: str, expected: list[Event]) -> None:
    fmt = FORMATS[kind]
    ids = ids_of(text, fmt)
    assert parse(ids, mode, fmt) == expected
    assert parse(ids, mode, fmt, tuple(range(len(ids)))) == expected
    assert joined(reference_parse(fmt, ids, is_thinking=mode == "reasoning")) == expected


def test_it_tells_whether_a_block_is_open() -> None:
    parser = OutputParser(FORMAT, thinking_open=True)
    opened = []
    for text in ("Let me think.\n", "</think>", "\n\nHello", "<think>", "\nhm"):
        parser.feed(ids_of(text))
        opened.append(parser.is_thinking)
    assert opened == [True, False, False, True, True]


def test_thinking_that_is_closed_for_the_model_ends_what_it_has_begun() -> None:
    parser = OutputParser(FORMAT, thinking_open=True, call_id=lambda: "")
    begun = '{"name": "f", "arguments": {"a'
    events = parser.feed(ids_of(f"Hm.\n<tool_call>{begun}")) + parser.end_thinking()
    assert events == [ReasoningText("Hm."), *call(0, "f", '{"a', complete=False)]
    events = parser.feed(ids_of('\nYes<tool_call>{"name": "g", "arguments": {}}</tool_call>')) + parser.finish()
    assert joined(events) == [AnswerText("\nYes"), *call(1, "g", "{}")]


def test_whether_thinking_is_open_can_be_told() -> None:
    parser = OutputParser(FORMAT, thinking_open=False)
    assert parser.feed(ids_of("Hello")) == [AnswerText("Hello")]
    parser = OutputParser(FORMAT, thinking_open=True)
    assert parser.feed(ids_of("Hello")) == [ReasoningText("Hello")]


def test_text_comes_at_once() -> None:
    """Nothing but a last newline and an unfinished character waits."""
    parser = OutputParser(FORMAT, thinking_open=False)
    assert parser.feed(ids_of("Hello")) == [AnswerText("Hello")]
    assert parser.feed(ids_of("\n")) == []
    assert parser.feed(ids_of("\n")) == [AnswerText("\n")]
    assert parser.feed(ids_of("the")) == [AnswerText("\nthe")]
    first, *middle, last = FORMAT.encode_text("😀")
    assert parser.feed([first, *middle]) == []
    assert parser.feed([last]) == [AnswerText("😀")]
    assert parser.feed([first]) == []
    assert parser.finish() == [AnswerText("\ufffd")]
    assert parser.finish() == []


def test_arguments_come_as_they_are_generated() -> None:
    parser = OutputParser(FORMAT, thinking_open=False, call_id=lambda: "c")
    assert parser.feed(ids_of('<tool_call>{"name": "f", "arguments": ')) == []
    assert parser.feed(ids_of('{"a": ')) == [ToolCallStart(0, "c", "f"), ToolCallArguments(0, '{"a": ')]
    assert parser.feed(ids_of('"é')) == [ToolCallArguments(0, '"é')]
    assert parser.feed(ids_of('"}')) == [ToolCallArguments(0, '"}')]
    assert parser.feed(ids_of("}")) == []
    assert parser.feed(ids_of("</tool_call>")) == [ToolCallEnd(0, complete=True)]


def test_call_ids_differ() -> None:
    assert new_call_id() != new_call_id()
    assert new_call_id().startswith("call_")


@example(ids=[10**9])
@given(ids=st.lists(st.integers(0, 10**6), max_size=20))
def test_ids_that_the_tokenizer_does_not_have(ids: list[int]) -> None:
    for fmt in FORMATS.values():
        for mode in MODES:
            parse(ids, mode, fmt)
