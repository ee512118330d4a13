"""Whole generations in each form, tags as tokens and as text: the same calls at every split, and text stays text."""

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_templates.checkpoint import CheckpointTemplate, TemplateFiles
from chat_templates.events import AnswerText, Event, ReasoningText, joined
from chat_templates.format import ChatFormat
from chat_templates.parser import OutputParser
from chat_templates.settings import FormatSettings
from chat_templates.tool_forms.form import NestedCalls, TaggedCalls, tags_of
from chat_templates.tool_forms.known import FORMS, form_in
from tests.chat_templates.foreign import IM, IM_NAMES, tokenizer_json
from tests.chat_templates.tool_forms.forms import ONE_A_SECTION, TOOLS, Call, written
from tests.chat_templates.tool_forms.test_reader import _calls_of, _is_written, calls

TOKEN = re.compile(r"\]<\]minimax\[>\[|<[^<>\s=]+>|\[[A-Z_]+\]|｜DSML｜")
KINDS = [(name, kind) for name in FORMS for kind in ("special", "added", "text")]


def made(name: str, kind: str) -> ChatFormat:
    """A format with that form, its tags tokens of that kind."""
    marks = (
        ["｜DSML｜"]
        if name.startswith("dsml")
        else sorted({t for tag in tags_of(FORMS[name]) for t in TOKEN.findall(tag)})
    )
    template = CheckpointTemplate(
        TemplateFiles("{{ messages[0].content }}{{ tools }}", None, IM_NAMES), FormatSettings(thinks=True, calls=name)
    )
    special = [*IM, *(marks if kind == "special" else [])]
    added = ["<think>", "</think>", *(marks if kind == "added" else [])]
    return ChatFormat.of_checkpoint(tokenizer_json(special, added), template)


FORMATS = {(name, kind): made(name, kind) for name, kind in KINDS}


def ids_of(fmt: ChatFormat, text: str) -> list[int]:
    """As a model writes it: tags as tokens where there are such."""
    pieces = re.split("(" + "|".join(map(re.escape, sorted(fmt.vocabulary.control, key=len, reverse=True))) + ")", text)
    control = fmt.vocabulary.control
    return [i for piece in pieces for i in ([control[piece]] if piece in control else fmt.encode_text(piece))]


def parsed(fmt: ChatFormat, ids: list[int], cuts: list[int], *, thinking: bool = False) -> list[Event]:
    parser = OutputParser(fmt, thinking_open=thinking, call_id=lambda: "", tools=TOOLS)
    events: list[Event] = []
    for start, end in pairwise([0, *cuts, len(ids)]):
        events += parser.feed(ids[start:end])
    return joined(events + parser.finish())


def texts_of(events: list[Event]) -> tuple[str, str]:
    answer = "".join(event.text for event in events if isinstance(event, AnswerText))
    return answer, "".join(event.text for event in events if isinstance(event, ReasoningText))


@pytest.mark.parametrize(("name", "kind"), KINDS)
@given(wanted=calls, data=st.data())
@settings(max_examples=25)
def test_a_generation_with_calls(name: str, kind: str, wanted: list[Call], data: st.DataObject) -> None:
    form, fmt = FORMS[name], FORMATS[name, kind]
    if not _is_written(form, wanted):
        return
    sections = [[call] for call in wanted] if name in ONE_A_SECTION else [wanted]
    said = "Look.\n" if form.open else ""
    text = said + "\n".join(form.open + written(form, section) for section in sections)
    if name == "mistral":
        text = text.replace("\n[TOOL_CALLS]", "[TOOL_CALLS]")
    ids = ids_of(fmt, text)
    whole = parsed(fmt, ids, [])
    assert _calls_of(whole) == (wanted, [True] * len(wanted))
    assert texts_of(whole) == (said.strip(), "")
    assert parsed(fmt, ids, sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=6)))) == whole
    assert parsed(fmt, ids, list(range(1, len(ids)))) == whole


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_text_that_only_looks_like_a_call(name: str, kind: str) -> None:
    form, fmt = FORMS[name], FORMATS[name, kind]
    text = f"{form.open} begins a call, and 1 < 2." if form.open else "[1] and {2} are no calls."
    for thinking in (False, True):
        ids = ids_of(fmt, text)
        events = parsed(fmt, ids, list(range(1, len(ids))), thinking=thinking)
        assert _calls_of(events) == ([], [])
        shown = texts_of(events)[thinking]
        assert shown == (text if kind == "text" else fmt.decode(ids))


@pytest.mark.parametrize(
    ("name", "kind"),
    [(n, k) for n, k in KINDS if not isinstance(FORMS[n], TaggedCalls | NestedCalls) and FORMS[n].open],
)
def test_a_tag_in_a_string_ends_nothing(name: str, kind: str) -> None:
    form, fmt = FORMS[name], FORMATS[name, kind]
    wanted: list[Call] = [("weather", {"city": f"a {form.close or form.open} <think> b"})]
    for thinking in (False, True):
        ids = ids_of(fmt, form.open + written(form, wanted))
        assert _calls_of(parsed(fmt, ids, list(range(1, len(ids))), thinking=thinking)) == (wanted, [True])


@pytest.mark.parametrize(("name", "kind"), [(n, k) for n, k in KINDS if FORMS[n].open])
def test_calls_within_the_thinking_and_its_end(name: str, kind: str) -> None:
    form, fmt = FORMS[name], FORMATS[name, kind]
    wanted: list[Call] = [("weather", {"city": "42"})]
    text = "hm" + form.open + written(form, wanted) + "</think>\n\nSo."
    events = parsed(fmt, ids_of(fmt, text), [], thinking=True)
    assert _calls_of(events) == (wanted, [True])
    assert texts_of(events) == ("So.", "hm")


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ('<tool_call>\n{"name": ..., "arguments": ...}\n</tool_call>', "hermes"),
        ("<tool_call>\n<function=f>\n<parameter=p>\n", "qwen3-coder"),
        ("<tool_call>{{ name }}<arg_key>{{ k }}</arg_key>", "glm"),
        ("<seed:tool_call><function=f><parameter=p>", "seed-oss"),
        ("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{{ name }}<｜tool▁sep｜>", "deepseek-v3.1"),
        ("<｜tool▁calls▁begin｜>function<｜tool▁sep｜>\n```json", "deepseek-v3"),
        ("[TOOL_CALLS]{{ name }}[ARGS]", "mistral"),
        ("[TOOL_CALLS][", "mistral-list"),
        ("<tool_call>{} <|tool_call|>[]", None),
        ("no tools", None),
    ],
)
def test_the_form_that_a_template_tells(template: str, name: str | None) -> None:
    assert form_in(template) == name


def test_the_form_that_tokens_tell_where_the_template_does_not() -> None:
    assert form_in("no tools", ["<|tool_call_start|>", "<|im_end|>"]) == "lfm2"
    assert form_in("<tool_calls>", ["<|tool_call_start|>"]) == "hunyuan"
