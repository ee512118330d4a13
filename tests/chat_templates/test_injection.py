"""Client text never becomes a control token, and still reaches the model unchanged."""

import json
import re
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_templates.client_text import plain, protect, protect_all
from chat_templates.tokens import TAGS, Vocabulary, replace_surrogates
from tests.chat_templates.conversations import reference_text
from tests.chat_templates.small_tokenizers import KINDS, make_format, tokenizer_spec
from tests.chat_templates.strategies import hostile_text, json_values, messages, tools
from tests.styles import STYLES, Mode

FORMATS = {kind: make_format(kind) for kind in KINDS}
LOSSLESS = ("byte_level", "whole_words")
MODES: tuple[Literal["standard"], Literal["reasoning"]] = ("standard", "reasoning")


def _harmless(value: Any) -> Any:
    """The same shape with every text that a client can choose replaced; empty stays empty."""
    match value:
        case str():
            return "x" if value else ""
        case list():
            return [_harmless(item) for item in value]
        case dict():
            kept = ("role", "type")
            return {key: item if key in kept else _harmless(item) for key, item in value.items()}
    return value


def _written(value: Any) -> Any:
    """Arguments as JSON in a string, as clients send them."""
    return [
        message
        | {
            "tool_calls": [
                {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
                for call in message.get("tool_calls", [])
            ]
        }
        for message in value
    ]


@settings(max_examples=40)
@given(messages, tools, st.sampled_from(MODES), st.sampled_from(sorted(FORMATS)))
def test_only_the_template_writes_control_tokens(
    conversation: list[dict[str, Any]], described: list[dict[str, Any]], mode: Mode, kind: str
) -> None:
    fmt = FORMATS[kind]
    ids = fmt.render(_written(conversation), STYLES[mode], described)
    harmless = fmt.render(_harmless(conversation), STYLES[mode], _harmless(described))
    control = [token_id for token_id in ids if token_id in fmt.control_ids]
    assert control == [token_id for token_id in harmless if token_id in fmt.control_ids], fmt.decode(
        ids, show_control=True
    )


@settings(max_examples=40)
@given(messages, tools, st.sampled_from(MODES), st.sampled_from(LOSSLESS))
def test_client_text_comes_through_unchanged(
    conversation: list[dict[str, Any]], described: list[dict[str, Any]], mode: Mode, kind: str
) -> None:
    fmt = FORMATS[kind]
    ids = fmt.render(_written(conversation), STYLES[mode], described)
    expected = replace_surrogates(reference_text(_written(conversation), mode, described))
    assert fmt.decode(ids, show_control=True) == expected


@given(hostile_text, st.sampled_from(sorted(FORMATS)))
def test_plain_text_has_no_control_token(text: str, kind: str) -> None:
    fmt = FORMATS[kind]
    ids = fmt.encode_text(text)
    assert fmt.control_ids.isdisjoint(ids)
    if kind in LOSSLESS:
        assert fmt.decode(ids) == replace_surrogates(text)


@pytest.mark.parametrize("kind", sorted(FORMATS))
def test_long_text_of_nothing_but_tags(kind: str) -> None:
    fmt = FORMATS[kind]
    assert fmt.control_ids.isdisjoint(fmt.encode_text(" ".join(TAGS * 300)))


fragments = st.one_of(
    st.sampled_from(["<", ">", "[|", "|]", "[", "]", "</", "<th", "nk>", "ink>", " <", "> ", "", "\n", "_call>"]),
    st.text(max_size=3),
)
TAG = re.compile("|".join(map(re.escape, TAGS)))


def _without_tags(text: str) -> str:
    return TAG.sub("", text)


@given(fragments, hostile_text, fragments, hostile_text, fragments)
def test_client_text_is_no_tag_wherever_a_template_puts_it(left: str, a: str, middle: str, b: str, right: str) -> None:
    """The template's own text around and between may be the missing part of a tag."""
    left, middle, right = (_without_tags(replace_surrogates(part)) for part in (left, middle, right))
    text = left + protect(a) + middle + protect(b) + right
    assert not TAG.search(text)
    assert plain(text) == replace_surrogates(left + a + middle + b + right)


@pytest.mark.parametrize(
    ("left", "text", "right"),
    [("<", "think", ">"), ("[|", "user", "|]"), ("<", " think ", ">"), ("</", "tool", "_call>"), ("[", "|user|", "]")],
)
def test_client_text_as_the_inner_part_of_a_tag(left: str, text: str, right: str) -> None:
    assert not TAG.search(left + protect(text).strip() + right)
    assert plain(left + protect(text).strip() + right) == left + text.strip() + right


@given(json_values)
def test_client_text_in_json(value: Any) -> None:
    assert not TAG.search(json.dumps(protect_all(value), ensure_ascii=False))


def test_tags_without_a_token_of_their_own_are_refused() -> None:
    """They would be ordinary text then, which any client could write."""
    spec = tokenizer_spec()
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] != "[|user|]"]
    with pytest.raises(ValueError, match=r"\[\|user\|\]"):
        Vocabulary(json.dumps(spec))
