"""Wrong messages raise a FormatError that names the field, and never another exception."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_templates.errors import FormatError
from chat_templates.messages import check_messages, check_tools
from chat_templates.settings import DIRECT, THINKING
from tests.chat_templates.small_tokenizers import make_format
from tests.chat_templates.strategies import json_values

FORMAT = make_format()


def _assistant(**call: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": "Hi"}, {"role": "assistant", "tool_calls": [call]}]


def _arguments(arguments: Any) -> list[dict[str, Any]]:
    return _assistant(type="function", function={"name": "f", "arguments": arguments})


BAD_MESSAGES: list[tuple[Any, str]] = [
    ([], "messages"),
    ("Hi", "messages"),
    ({"role": "user"}, "messages"),
    (["Hi"], "messages[0]"),
    ([{"content": "Hi"}], "messages[0].role"),
    ([{"role": "function", "content": "Hi"}], "messages[0].role"),
    ([{"role": ["user"], "content": "Hi"}], "messages[0].role"),
    ([{"role": "user"}], "messages[0].content"),
    ([{"role": "tool", "content": 5}], "messages[0].content"),
    ([{"role": "user", "content": 5}], "messages[0].content"),
    ([{"role": "user", "content": ["Hi"]}], "messages[0].content[0]"),
    ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
    (
        [{"role": "user", "content": [{"type": "text", "text": ""}, {"type": "image_url"}]}],
        "messages[0].content[1].type",
    ),
    ([{"role": "user", "content": "Hi", "name": 5}], "messages[0].name"),
    ([{"role": "tool", "content": "Hi", "tool_call_id": 5}], "messages[0].tool_call_id"),
    ([{"role": "user", "content": "Hi", "tool_calls": [{}]}], "messages[0].tool_calls"),
    ([{"role": "assistant", "content": "Hi", "reasoning_content": 5}], "messages[0].reasoning_content"),
    ([{"role": "assistant", "tool_calls": {}}], "messages[0].tool_calls"),
    ([{"role": "assistant", "tool_calls": ["f"]}], "messages[0].tool_calls[0]"),
    (_assistant(type="web", function={"name": "f"}), "messages[1].tool_calls[0].type"),
    (_assistant(type="custom", function={"name": "f"}), "messages[1].tool_calls[0].custom"),
    (_assistant(type="custom", custom={"input": "a"}), "messages[1].tool_calls[0].custom.name"),
    (_assistant(type="custom", custom={"name": "f", "input": 5}), "messages[1].tool_calls[0].custom.input"),
    (_assistant(type="function"), "messages[1].tool_calls[0].function"),
    (_assistant(function={"name": ""}), "messages[1].tool_calls[0].function.name"),
    (_assistant(function={"arguments": "{}"}), "messages[1].tool_calls[0].function.name"),
    *[(_arguments(bad), "messages[1].tool_calls[0].function.arguments") for bad in (5, ["a"], {"a": {1}}, {1: "a"})],
]
BAD_TOOLS: list[tuple[Any, str]] = [
    ("f", "tools"),
    (["f"], "tools[0]"),
    ([{"type": "retrieval"}], "tools[0].type"),
    ([{"type": "function"}], "tools[0].function"),
    ([{"type": "function", "function": {"name": 5}}], "tools[0].function.name"),
    ([{"type": "function", "function": {"name": "f", "parameters": b"x"}}], "tools[0].function"),
]


@pytest.mark.parametrize(("messages", "param"), BAD_MESSAGES)
def test_bad_messages(messages: Any, param: str) -> None:
    with pytest.raises(FormatError) as caught:
        FORMAT.render(messages, DIRECT)
    assert caught.value.param == param
    assert str(caught.value) == caught.value.message != ""


@pytest.mark.parametrize("text", ["{", "5", "[]", "nan", '{"a": NaN}', "[" * 100_000, "1" * 5_000, '{"a": "303 +'])
def test_arguments_that_are_no_object_stay_text(text: str) -> None:
    """Models write such, and a limit cuts calls off; the conversation has to go on."""
    (turn,) = check_messages(_arguments(text)[1:])
    assert turn["tool_calls"][0]["arguments"] == text
    assert FORMAT.render(_arguments(text), DIRECT)


@pytest.mark.parametrize("text", ["", " ", "null", "{}"])
def test_arguments_that_are_nothing_are_none(text: str) -> None:
    (turn,) = check_messages(_arguments(text)[1:])
    assert turn["tool_calls"][0]["arguments"] == {}


@pytest.mark.parametrize(("tools", "param"), BAD_TOOLS)
def test_bad_tools(tools: Any, param: str) -> None:
    with pytest.raises(FormatError) as caught:
        FORMAT.render([{"role": "user", "content": "Hi"}], DIRECT, tools)
    assert caught.value.param == param


def test_endless_nesting() -> None:
    schema: dict[str, Any] = {}
    for _ in range(10_000):
        schema = {"items": schema}
    with pytest.raises(FormatError, match="levels deep") as caught:
        check_tools([{"type": "function", "function": {"name": "f", "parameters": schema}}])
    assert caught.value.param == "tools[0].function"


def test_only_assistants_are_continued_or_learnt() -> None:
    messages = [{"role": "assistant", "content": "Hi"}, {"role": "user", "content": "Hi"}]
    with pytest.raises(FormatError) as caught:
        FORMAT.render(messages, DIRECT, continue_final_message=True)
    assert caught.value.param == "messages[1].role"
    with pytest.raises(FormatError) as caught:
        FORMAT.render_conversation(messages, DIRECT)
    assert caught.value.param == "messages[1].role"


def test_what_messages_become() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": {"b": [1]}}'}}
    turns = check_messages(
        [
            {"role": "developer", "content": "A", "name": None},
            {"role": "user", "content": [{"type": "text", "text": "B"}, {"type": "text", "text": "C"}], "unknown": 1},
            {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "D"},
            {"role": "assistant", "tool_calls": None},
            {"role": "tool", "content": "", "tool_call_id": "1"},
        ]
    )
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "assistant", "tool"]
    assert [turn["content"] for turn in turns] == ["A", "BC", "", "", ""]
    assert [turn["reasoning_content"] for turn in turns] == ["", "", "D", "", ""]
    assert turns[2]["tool_calls"] == [{"id": "1", "name": "f", "arguments": {"a": {"b": [1]}}}]


@pytest.mark.parametrize("arguments", ["", "{}", " {} ", {}, None])
def test_no_arguments(arguments: Any) -> None:
    assert check_messages(_arguments(arguments))[1]["tool_calls"] == [{"id": "", "name": "f", "arguments": {}}]


_roles = st.sampled_from(["system", "developer", "user", "assistant", "tool", "other"])
_fields = st.fixed_dictionaries(
    {},
    optional={
        "role": st.one_of(_roles, json_values),
        "content": st.one_of(st.text(max_size=3), json_values),
        "name": json_values,
        "tool_calls": st.one_of(json_values, st.lists(st.fixed_dictionaries({"function": json_values}), max_size=2)),
        "reasoning_content": json_values,
    },
)


@settings(max_examples=40)
@given(st.one_of(json_values, st.lists(_fields, max_size=3)), json_values)
def test_accepted_or_our_own_error(messages: Any, tools: Any) -> None:
    try:
        FORMAT.render(messages, THINKING, tools)
    except FormatError as error:
        assert error.param.startswith(("messages", "tools"))  # noqa: PT017 - either outcome is right
