"""Thinking that opens in the answer, again or unasked for: it is apart, counted and bound in every API."""

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_templates.format import ChatFormat
from tests.fake_engine import FakeEngine
from tests.server.conftest import HELLO, MODEL, Client, always, body
from tests.server.test_streaming import TOOLS, events_of, gathered, plain

CHAT = "/v1/chat/completions"
OPEN, CLOSE = "<think>\n", "\n</think>\n\n"
TWICE = f"hm{CLOSE}First.\n{OPEN}so{CLOSE}It is 4."
"""What a model writes after a prompt that opened its thinking."""


def ids_of(fmt: ChatFormat, text: str) -> list[int]:
    """The tokens of a generation, tags as tokens, with the end of its turn."""
    ids: list[int] = []
    for index, part in enumerate(re.split("(</?think>)", text)):
        ids += [fmt.vocabulary.control[part]] if index % 2 else fmt.encode_text(part)
    return [*ids, fmt.end_of_turn_id]


async def both(client: Client, fmt: ChatFormat, ids: list[int], **fields: Any) -> dict[str, Any]:
    """The whole answer of a chat, which the streamed one has to be equal to, however the engine cuts it."""
    whole: dict[str, Any] = {}
    for chunks in ([1], [3], [len(ids)]):
        async with client(FakeEngine(always(ids), (fmt.end_of_turn_id,), chunks=chunks)) as http:
            found = plain((await http.post(CHAT, json=body(**fields))).json())
            asked = body(**fields, stream=True, stream_options={"include_usage": True})
            assert gathered(events_of((await http.post(CHAT, json=asked)).text)) == found
        assert whole in ({}, found)
        whole = found
    return whole


async def test_a_second_thought_is_apart_from_the_text_around_it(client: Client, fmt: ChatFormat) -> None:
    whole = await both(client, fmt, ids_of(fmt, TWICE), reasoning_mode="reasoning")
    (choice,) = whole["choices"]
    assert (choice["reasoning"], choice["content"]) == ("hmso", "First.\nIt is 4.")
    assert choice["reasoning_finish_reason"] == "natural"
    spent = len(fmt.encode_text("hm\n")) + len(fmt.encode_text("\nso\n"))
    assert whole["usage"]["completion_tokens_details"]["reasoning_tokens"] == spent


@pytest.mark.parametrize("before", ["", "\n", "I see.\n\n"])
async def test_a_thought_that_nobody_asked_for_is_taken_out_and_counted(
    client: Client, fmt: ChatFormat, before: str
) -> None:
    whole = await both(client, fmt, ids_of(fmt, f"{before}{OPEN}so{CLOSE}It is 4."), reasoning_mode="standard")
    (choice,) = whole["choices"]
    assert choice["content"] == f"{before.lstrip()}It is 4."
    assert "reasoning" not in choice or not choice["reasoning"]
    assert whole["usage"]["completion_tokens_details"]["reasoning_tokens"] == len(fmt.encode_text("\nso\n"))


@pytest.mark.parametrize("mode", ["standard", "reasoning"])
@pytest.mark.parametrize(
    "answer",
    [
        "The tag <think> opens it, </think> ends it.",
        "It is:\n```\n<think>\nhm\n</think>\n```\nSo.",
        "- <think> and </think>",
    ],
)
async def test_what_tells_of_the_tags_is_text(client: Client, fmt: ChatFormat, mode: str, answer: str) -> None:
    written = answer if mode == "standard" else f"hm{CLOSE}{answer}"
    whole = await both(client, fmt, ids_of(fmt, written), reasoning_mode=mode)
    assert whole["choices"][0]["content"] == answer


async def test_a_tag_in_a_call_is_text(client: Client, fmt: ChatFormat) -> None:
    call = [fmt.tool_call_id, *fmt.encode_text('{"name": "f", "arguments": {"x": "')]
    call += [fmt.think_id, *fmt.encode_text('"}}'), fmt.tool_call_end_id, fmt.end_of_turn_id]
    whole = await both(client, fmt, call, tools=TOOLS)
    (given_call,) = whole["choices"][0]["calls"]
    assert "<think>" in given_call["arguments"]
    assert whole["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0


async def test_responses_and_messages(client: Client, fmt: ChatFormat) -> None:
    engine = FakeEngine(always(ids_of(fmt, TWICE)), (fmt.end_of_turn_id,))
    direct = FakeEngine(always(ids_of(fmt, f"{OPEN}so{CLOSE}It is 4.")), (fmt.end_of_turn_id,))
    spent = len(fmt.encode_text("hm\n")) + len(fmt.encode_text("\nso\n"))
    async with client(engine) as http:
        asked: dict[str, Any] = {"model": f"{MODEL}:reasoning", "input": "2+2"}
        told = (await http.post("/v1/responses", json=asked)).json()
        kinds = [item["type"] for item in told["output"]]
        assert kinds == ["reasoning", "message", "reasoning", "message"]
        assert told["usage"]["output_tokens_details"]["reasoning_tokens"] == spent
        asked = {"model": f"{MODEL}:reasoning", "messages": HELLO, "max_tokens": 900}
        blocks = (await http.post("/v1/messages", json=asked)).json()["content"]
        assert [block["type"] for block in blocks] == ["thinking", "text", "thinking", "text"]
        assert [block.get("thinking") or block["text"] for block in blocks] == ["hm", "First.\n", "so", "It is 4."]
    async with client(direct) as http:
        asked = {"model": f"{MODEL}:standard", "input": "2+2"}
        told = (await http.post("/v1/responses", json=asked)).json()
        assert [item["type"] for item in told["output"]] == ["message"]
        assert told["usage"]["output_tokens_details"]["reasoning_tokens"] == len(fmt.encode_text("\nso\n"))
        asked = {"model": f"{MODEL}:standard", "messages": HELLO, "max_tokens": 900}
        blocks = (await http.post("/v1/messages", json=asked)).json()["content"]
        assert [(block["type"], block["text"]) for block in blocks] == [("text", "It is 4.")]


@given(data=st.data())
def test_the_budget_bounds_all_thoughts_together(client: Client, fmt: ChatFormat, data: st.DataObject) -> None:
    thoughts = data.draw(st.lists(st.sampled_from(["so", "é 12", "a" * 30]), min_size=1, max_size=4))
    budget = data.draw(st.integers(0, 60))
    max_tokens = data.draw(st.integers(20, 300))
    text = OPEN.join(f"{thought}{CLOSE}Text.\n" for thought in thoughts)
    after = f"{OPEN}{'b' * 30}{CLOSE}End."
    chunks = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    fields: dict[str, Any] = data.draw(st.sampled_from([{}, {"min_tokens": 2}, {"stop": ["Z"]}]))

    def write(prompt: list[int]) -> Iterator[int]:
        return iter(ids_of(fmt, text if fmt.is_thinking_open(prompt) else after))

    async def ask() -> dict[str, Any]:
        asked = body(reasoning_mode="reasoning", thinking_token_budget=budget, max_tokens=max_tokens, **fields)
        async with client(FakeEngine(write, (fmt.end_of_turn_id,), chunks=chunks)) as http:
            return plain((await http.post(CHAT, json={**asked, "return_token_ids": True})).json())

    result = asyncio.run(ask())
    (choice,) = result["choices"]
    thinking, spent = True, 0
    for token_id in choice["ids"]:
        spent += thinking and token_id != fmt.think_end_id
        thinking = (thinking or token_id == fmt.think_id) and token_id != fmt.think_end_id
    assert result["usage"]["completion_tokens_details"]["reasoning_tokens"] == spent <= budget
    assert len(choice["ids"]) <= max_tokens
    assert "<think>" not in choice["content"]


async def test_a_thought_that_nobody_asked_for_may_be_closed_by_its_turn(client: Client, fmt: ChatFormat) -> None:
    def write(prompt: list[int]) -> Iterator[int]:
        return iter(ids_of(fmt, "It is 4." if prompt.count(fmt.think_end_id) > 1 else f"{OPEN}so"))

    async with client(FakeEngine(write, (fmt.end_of_turn_id,))) as http:
        whole = plain((await http.post(CHAT, json=body(reasoning_mode="standard"))).json())
    assert whole["choices"][0]["content"] == "It is 4."
    assert whole["usage"]["completion_tokens_details"]["reasoning_tokens"] == len(fmt.encode_text("\nso"))
