"""Budgets through HTTP: never a token over, closed once, the wrap-up no part of the answer, and always an answer."""

import asyncio
from collections.abc import Iterator
from itertools import chain, cycle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_templates.format import ChatFormat
from tests.fake_engine import FakeEngine, Script
from tests.server.conftest import Client, body
from tests.server.test_streaming import CALL, TOOLS, events_of, gathered, plain

CHAT = "/v1/chat/completions"
ANSWER = "Forty-two é"
THOUGHTS = st.lists(st.sampled_from(["so", " 12", "é", "😀", "\n", "STOP", "CALL"]), min_size=1, max_size=12)


def script(fmt: ChatFormat, thoughts: list[str], *, calls: bool) -> tuple[Script, int]:
    """Thinks `thoughts` where thinking is open, closes it, and answers; answers at once where it is not open. With it,
    the length of that thinking.

    A thought CALL is a tool call within the thinking; with `calls` there is one in the answer too.
    """
    call = [fmt.tool_call_id, *fmt.encode_text(CALL), fmt.tool_call_end_id]
    thinking = [i for thought in thoughts for i in (call if thought == "CALL" else fmt.encode_text(thought))]
    answer = [*fmt.encode_text(ANSWER), *(call if calls else []), fmt.end_of_turn_id]

    def write(prompt: list[int]) -> Iterator[int]:
        return iter([*thinking, *fmt.close_thinking(), *answer] if fmt.is_thinking_open(prompt) else answer)

    return write, len(thinking) + fmt.close_thinking().index(fmt.think_end_id)


@given(data=st.data())
def test_budgets_hold(client: Client, fmt: ChatFormat, data: st.DataObject) -> None:
    tools = data.draw(st.booleans())
    write, natural = script(fmt, data.draw(THOUGHTS), calls=tools)
    budget = data.draw(st.integers(0, natural + 2))
    n = data.draw(st.integers(1, 3))
    fields: dict[str, Any] = {"thinking_token_budget": budget, "n": n, "max_tokens": 400}
    fields |= data.draw(
        st.fixed_dictionaries(
            {}, optional={"stop": st.just(["STOP", "Z"]), "stop_token_ids": st.just(fmt.encode_text("S"))}
        )
    )
    if tools:
        fields["tools"] = TOOLS
    chunks = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    streams = data.draw(st.booleans())

    async def ask() -> dict[str, Any]:
        asked = body(reasoning_mode="reasoning", return_token_ids=True, **fields)
        async with client(FakeEngine(write, (fmt.end_of_turn_id,), chunks=chunks)) as http:
            if not streams:
                return plain((await http.post(CHAT, json=asked)).json())
            asked |= {"stream": True, "stream_options": {"include_usage": True}}
            return gathered(events_of((await http.post(CHAT, json=asked)).text))

    result = asyncio.run(ask())
    assert len(result["choices"]) == n
    thought = 0
    for choice in result["choices"]:
        assert choice["ids"].count(fmt.think_end_id) == 1
        end = choice["ids"].index(fmt.think_end_id)
        assert end <= budget
        # A part of the budget is kept for the wrap-up, at most half of it.
        assert choice["reasoning_finish_reason"] in (["natural"] if natural <= budget // 2 else ["natural", "budget"])
        assert end == (natural if choice["reasoning_finish_reason"] == "natural" else budget)
        assert choice["content"] == ANSWER
        assert [call["name"] for call in choice["calls"]][-1:] == ["f"] * tools
        assert len(choice["ids"]) <= fields["max_tokens"]
        thought += end
    assert result["usage"]["completion_tokens_details"]["reasoning_tokens"] == thought


@pytest.mark.parametrize("streams", [False, True])
async def test_no_budget_within_a_limit_too_small_for_an_answer(client: Client, fmt: ChatFormat, streams: bool) -> None:
    write, _ = script(fmt, ["so"], calls=False)
    asked = body(reasoning_mode="reasoning", max_tokens=1, thinking_token_budget=0)
    async with client(FakeEngine(write, (fmt.end_of_turn_id,))) as http:
        if streams:
            asked |= {"stream": True, "stream_options": {"include_usage": True}}
            found = gathered(events_of((await http.post(CHAT, json=asked)).text))
        else:
            found = plain((await http.post(CHAT, json=asked)).json())
    assert found["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0
    assert [choice["finish_reason"] for choice in found["choices"]] == ["length"]


@pytest.mark.parametrize("limit", [None, 600])
@pytest.mark.parametrize("how", ["natural", "budget", "repetition"])
async def test_an_answer_without_end_ends_with_the_limit(
    client: Client, fmt: ChatFormat, how: str, limit: int | None
) -> None:
    """However the thought before it was closed; without a limit of the client's, with the mode's or the context."""
    thought = fmt.encode_text("so ") * (2000 if how == "repetition" else 20)
    words = fmt.encode_text("and so ")
    written = [*thought, *fmt.close_thinking()]

    def write(prompt: list[int]) -> Iterator[int]:
        return chain(written if fmt.is_thinking_open(prompt) else [], cycle(words))

    fields: dict[str, Any] = {"thinking_token_budget": 12} if how == "budget" else {}
    if limit is not None:
        fields["max_tokens"] = limit
    async with client(FakeEngine(write, (fmt.end_of_turn_id,), chunks=(7,))) as http:
        answer = (await http.post(CHAT, json=body(reasoning_mode="reasoning", **fields))).json()
    (choice,), usage = answer["choices"], answer["usage"]
    closed = "length" if how == "repetition" and limit is not None else how  # a loop is one after 1,024 tokens
    assert (choice["finish_reason"], choice["reasoning_finish_reason"]) == ("length", closed)
    assert usage["completion_tokens"] == (limit or 4096 - usage["prompt_tokens"])
    assert "and so and so" in choice["message"]["content"]
