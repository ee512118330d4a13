"""What a model writes as calls in any form comes back as those calls, however the text is cut."""

import json
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_templates.events import Event, ToolCallArguments, ToolCallEnd, ToolCallStart
from chat_templates.tool_forms.form import BareKeyCalls, NestedCalls, TaggedCalls
from chat_templates.tool_forms.known import FORMS
from chat_templates.tool_forms.reader import SectionReader
from tests.chat_templates.tool_forms.forms import ONE_A_SECTION, TOOLS, Call, written

quotes = [form.quote for form in FORMS.values() if isinstance(form, BareKeyCalls)]  # which end a text
texts = st.text(alphabet=st.sampled_from(list("aB1 -<>{}[]()\"'\\\n\té한😀=,:/|")), max_size=12).filter(
    lambda text: not any(quote in text for quote in quotes)
)
values = {
    "city": texts | st.sampled_from(["42", "true", "null", "</tool_call", "<parameter", '{"a": 1}', "[]", "```"]),
    "days": st.integers(-9, 10**9),
    "exact": st.booleans(),
    "share": st.floats(allow_nan=False, allow_infinity=False, width=32),
    "tags": st.lists(texts, max_size=3),
    "where": st.fixed_dictionaries({"a": st.integers(0, 9)}),
    "unit": st.sampled_from(["C", "F"]),
}
calls = st.lists(
    st.one_of(
        st.just(("now", {})),
        st.tuples(
            st.just("weather"),
            st.fixed_dictionaries({"city": values["city"]}, optional={k: v for k, v in values.items() if k != "city"}),
        ),
    ),
    min_size=1,
    max_size=3,
)


def read(form: Any, pieces: list[str], tools: Any = TOOLS) -> tuple[list[Call], list[bool], SectionReader]:
    numbers = count()
    reader = SectionReader(form, tools, 0, lambda: f"call_{next(numbers)}")
    events: list[Event] = []
    for piece in pieces:
        if reader.is_closed:
            reader.rest += piece
        else:
            events += reader.feed(piece)
    if not reader.is_closed:
        events += reader.finish()
    return (*_calls_of(events), reader)


def _calls_of(events: list[Event]) -> tuple[list[Call], list[bool]]:
    found: list[tuple[str, str]] = []
    complete: list[bool] = []
    for event in events:
        match event:
            case ToolCallStart(index, _, name):
                assert index == len(found)
                found.append((name, ""))
            case ToolCallArguments(index, text):
                assert index == len(found) - 1
                found[index] = (found[index][0], found[index][1] + text)
            case ToolCallEnd(index, is_complete):
                assert index == len(complete) == len(found) - 1
                complete.append(is_complete)
    whole = [(name, json.loads(text)) for (name, text), done in zip(found, complete, strict=True) if done]
    return whole, complete


def cut(text: str, data: st.DataObject) -> list[str]:
    places = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    return [text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True)]


@pytest.mark.parametrize("name", FORMS)
@given(wanted=calls, data=st.data())
@settings(max_examples=150)
def test_calls_come_back(name: str, wanted: list[Call], data: st.DataObject) -> None:
    form = FORMS[name]
    wanted = wanted[:1] if name in ONE_A_SECTION else wanted
    text = written(form, wanted)
    assert _is_written(form, wanted), "what a form cannot say is not asked for"
    found, complete, reader = read(form, cut(text + (" after" if form.close else ""), data))
    assert (found, complete) == (wanted, [True] * len(wanted))
    assert reader.rest == (" after" if form.close else "")
    assert reader.calls == len(wanted)


def _is_written(form: Any, wanted: list[Call]) -> bool:
    """A text that has the closing tag in it, or a tag that ends a value, is not to be had without quotes."""
    if isinstance(form, BareKeyCalls):
        ends: tuple[str, ...] = (form.quote,)
    elif isinstance(form, NestedCalls):
        ends = (form.mark,)
    elif isinstance(form, TaggedCalls):
        ends = (form.param_close, form.param_open, form.call_close or form.close)
    else:
        return True
    texts = [value for _, arguments in wanted for value in arguments.values() if isinstance(value, str)]
    return not any(end in text for text in texts for end in ends)


@pytest.mark.parametrize("name", FORMS)
@given(wanted=calls, data=st.data())
@settings(max_examples=100)
def test_wherever_it_ends_nothing_is_made_up(name: str, wanted: list[Call], data: st.DataObject) -> None:
    form = FORMS[name]
    wanted = wanted[:1] if name in ONE_A_SECTION else wanted
    text = written(form, wanted)
    end = data.draw(st.integers(0, len(text)))
    found, complete, reader = read(form, cut(text[:end], data))
    assert found == wanted[: len(found)]
    assert complete.count(False) <= 1
    if not complete:
        assert reader.rest.strip() == text[:end].strip() or not reader.rest
