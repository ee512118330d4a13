"""No string of a client's, in whatever field, becomes a control token in the prompt, or keeps or ends the thinking."""

import asyncio
import copy
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_templates.format import ChatFormat
from chat_templates.tokens import TAGS
from engine.messages import Generate
from tests.chat_templates.strategies import hostile_text
from tests.fake_engine import FakeEngine
from tests.server.conftest import MODEL, Client

CHAT = "/v1/chat/completions"
TEXTS = hostile_text.filter(lambda text: not any("\ud800" <= char <= "\udfff" for char in text))  # JSON has no others
NAMES = st.text("abc_-.", min_size=1, max_size=8)


@st.composite
def schemas(draw: st.DrawFn) -> dict[str, Any]:
    """A schema with hostile titles, descriptions, defaults, property names and enums."""
    words = st.lists(TEXTS, min_size=1, max_size=2, unique=True)
    inner = {"type": "string", "description": draw(TEXTS), "enum": draw(words), "default": draw(TEXTS)}
    properties = {draw(TEXTS): inner, "b": {"type": "integer", "title": draw(TEXTS)}}
    return {"type": "object", "title": draw(TEXTS), "description": draw(TEXTS), "properties": properties}


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    """A request with a hostile text in every field that takes one."""
    calls = [
        {"id": draw(TEXTS), "type": "function", "function": {"name": draw(NAMES), "arguments": f'{{"{name}": 1}}'}}
        for name in draw(st.lists(st.sampled_from(TAGS), max_size=2))
    ]
    fields: dict[str, Any] = {
        "messages": [
            {"role": draw(st.sampled_from(["system", "developer"])), "content": draw(TEXTS), "name": draw(TEXTS)},
            {"role": "user", "content": [{"type": "text", "text": draw(TEXTS)} for _ in range(2)], "name": draw(TEXTS)},
            {"role": "assistant", "content": draw(TEXTS), "reasoning_content": draw(TEXTS), "tool_calls": calls},
            {"role": "tool", "content": draw(TEXTS), "tool_call_id": draw(TEXTS)},
            {"role": "user", "content": draw(TEXTS)},
        ],
        "reasoning_mode": draw(st.sampled_from(["standard", "reasoning"])),
        "stop": draw(st.lists(TEXTS.filter(bool), max_size=3)),
        "user": draw(TEXTS),
        "metadata": {draw(TEXTS): draw(TEXTS)},
        draw(TEXTS.filter(lambda text: not text.isascii() or "<" in text)): draw(TEXTS),
    }
    tool = {"name": draw(NAMES), "description": draw(TEXTS), "parameters": draw(schemas())}
    if draw(st.booleans()):
        fields["tools"] = [{"type": "function", "function": tool, draw(TEXTS): draw(TEXTS)}]
    if draw(st.booleans()):
        json_schema = {"name": draw(TEXTS), "description": draw(TEXTS), "schema": draw(schemas())}
        fields["response_format"] = {"type": "json_schema", "json_schema": json_schema}
    return fields


def harmless(value: Any) -> Any:
    """The same shape, with a letter for every text that a client can choose freely."""
    match value:
        case str():
            return "x" if value else ""
        case list():
            return [harmless(item) for item in value]
        case dict():
            kept = ("role", "type", "reasoning_mode", "arguments", "enum")
            return {key: item if key in kept else harmless(item) for key, item in value.items()}
    return value


def prompts(client: Client, fmt: ChatFormat, *bodies: dict[str, Any], path: str = CHAT) -> list[Generate]:
    """What the engine was asked for, of each request that was not refused."""
    thinking = [*fmt.encode_text("so"), *fmt.close_thinking()]
    answer = [*fmt.encode_text("{}"), fmt.end_of_turn_id]
    engine = FakeEngine(
        lambda prompt: iter(thinking + answer if fmt.is_thinking_open(prompt) else answer), (fmt.end_of_turn_id,)
    )

    async def run() -> list[httpx.Response]:
        async with client(engine) as http:
            return [await http.post(path, json={"model": MODEL, **body}) for body in bodies]

    responses = asyncio.run(run())
    assert all(response.status_code in (200, 400) for response in responses), responses
    return engine.seen


@settings(max_examples=20)
@given(asked=requests())
def test_no_field_yields_a_control_token(client: Client, fmt: ChatFormat, asked: dict[str, Any]) -> None:
    plain = copy.deepcopy(asked)
    plain.pop("response_format", None)  # a grammar that the schema does not make is refused; the prompt is the same
    seen = [request for request in prompts(client, fmt, plain, harmless(plain)) if request.request_id.endswith("-0")]
    first, second = seen
    control = [[token_id for token_id in request.prompt_ids if token_id in fmt.control_ids] for request in seen]
    assert control[0] == control[1], fmt.decode(first.prompt_ids, show_control=True)
    assert fmt.control_ids.isdisjoint(first.sampling.stop_token_ids)
    assert second.sampling.logit_bias == first.sampling.logit_bias


@settings(max_examples=20)
@given(asked=requests())
def test_a_format_adds_nothing_to_the_prompt(client: Client, fmt: ChatFormat, asked: dict[str, Any]) -> None:
    free = {name: value for name, value in asked.items() if name != "response_format"}
    seen = [request.prompt_ids for request in prompts(client, fmt, asked, free) if request.request_id.endswith("-0")]
    assert all(ids == seen[-1] for ids in seen)


@settings(max_examples=20)
@given(text=TEXTS.filter(bool))
def test_raw_prompts_are_text(client: Client, fmt: ChatFormat, text: str) -> None:
    for request in prompts(client, fmt, {"prompt": text, "stop": text[:9]}, {"prompt": [text]}, path="/v1/completions"):
        assert fmt.control_ids.isdisjoint(request.prompt_ids)


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("place", [lambda tag: {"stop": tag}, lambda tag: {"stop": ["so", tag]}])
def test_a_stop_that_spells_a_tag_is_text(
    client: Client, fmt: ChatFormat, tag: str, place: Callable[[str], dict[str, Any]]
) -> None:
    """It neither ends the thinking nor the turn."""
    body = {"messages": [{"role": "user", "content": "Hi"}], "reasoning_mode": "reasoning", **place(tag)}
    (request,) = prompts(client, fmt, body)
    assert fmt.is_thinking_open(request.prompt_ids)
    assert request.sampling.stop_token_ids == ()
