"""Several choices of one request, and log-probabilities."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from chat_templates.format import ChatFormat
from chat_templates.settings import THINKING
from server.core.merge import merged
from tests.fake_engine import FakeEngine
from tests.server.conftest import HELLO, Client, body

CHAT = "/v1/chat/completions"


@pytest.fixture
def engine(fmt: ChatFormat) -> FakeEngine:
    """Thinks "so é" where thinking is open, and answers "it é"."""
    answer = [*fmt.encode_text("it é"), fmt.end_of_turn_id]
    thinking = [*fmt.encode_text("so é"), *fmt.close_thinking()]
    return FakeEngine(
        lambda prompt: iter(thinking + answer if fmt.is_thinking_open(prompt) else answer), (fmt.end_of_turn_id,)
    )


async def post(client: Client, engine: FakeEngine, **fields: Any) -> dict[str, Any]:
    async with client(engine) as http:
        response = await http.post(CHAT, json=body(**fields))
    assert response.status_code == 200, response.text
    return dict(response.json())


@pytest.mark.parametrize(("seed", "seeds"), [(7, [7, 8, 9]), (2**63 - 1, [2**63 - 1, -(2**63), -(2**63) + 1])])
async def test_choices_have_seeds_of_their_own(
    client: Client, engine: FakeEngine, fmt: ChatFormat, seed: int, seeds: list[int]
) -> None:
    result = await post(client, engine, n=3, seed=seed, reasoning_mode="reasoning")
    assert [choice["index"] for choice in result["choices"]] == [0, 1, 2]
    assert {choice["message"]["content"] for choice in result["choices"]} == {"it é"}
    assert sorted(request.sampling.seed or 0 for request in engine.seen) == sorted(seeds)
    prompt = fmt.render(HELLO, THINKING)
    assert all(request.prompt_ids == prompt for request in engine.seen)
    usage = result["usage"]
    assert usage["prompt_tokens"] == len(prompt)
    thinking, closing, answer = fmt.encode_text("so é"), fmt.close_thinking(), fmt.encode_text("it é")
    assert usage["completion_tokens"] == 3 * (len(thinking) + len(closing) + len(answer) + 1)
    thought = len(thinking) + closing.index(fmt.think_end_id)
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 3 * thought


async def test_without_a_seed_choices_have_none(client: Client, engine: FakeEngine) -> None:
    await post(client, engine, n=2)
    assert [request.sampling.seed for request in engine.seen] == [None, None]


async def test_a_choice_that_fails_ends_the_others(client: Client, engine: FakeEngine) -> None:
    engine.fail_after = 2
    async with client(engine) as http:
        response = await http.post(CHAT, json=body(n=3))
        assert 'twogear_requests_running{mode="standard"} 0.0' in (await http.get("/metrics")).text
    assert response.status_code == 503
    assert len(engine.aborted) == len(engine.seen) == 3


async def test_merging_ends_its_sources_when_left_early() -> None:
    ended = []

    async def source(name: int) -> AsyncGenerator[int, None]:
        try:
            while True:
                await asyncio.sleep(0)
                yield name
        finally:
            ended.append(name)

    pieces = merged([source(1), source(2)])
    seen = {await anext(pieces) for _ in range(6)}
    await pieces.aclose()
    assert seen == {1, 2} == set(ended)


async def test_logprobs_are_of_the_answer(client: Client, engine: FakeEngine, fmt: ChatFormat) -> None:
    result = await post(client, engine, logprobs=True, top_logprobs=2, reasoning_mode="reasoning")
    assert {request.sampling.logprobs for request in engine.seen} == {2}
    logprobs = result["choices"][0]["logprobs"]
    assert set(logprobs) == {"content", "refusal"}
    ids = fmt.encode_text("it é")
    assert b"".join(bytes(entry["bytes"]) for entry in logprobs["content"]) == "it é".encode()
    assert [entry["logprob"] for entry in logprobs["content"]] == [-token_id / 1000 for token_id in ids]
    for entry, token_id in zip(logprobs["content"], ids, strict=True):
        first, second = entry["top_logprobs"]
        assert {name: entry[name] for name in first} == first
        assert second["logprob"] == -token_id / 1000 - 1


async def test_logprobs_of_the_thinking_on_request(client: Client, engine: FakeEngine) -> None:
    result = await post(client, engine, logprobs=True, reasoning_logprobs=True, reasoning_mode="reasoning")
    logprobs = result["choices"][0]["logprobs"]
    assert b"".join(bytes(entry["bytes"]) for entry in logprobs["reasoning"]) == "so é\n".encode()
    assert all(entry["top_logprobs"] == [] for entry in logprobs["content"] + logprobs["reasoning"])


async def test_what_was_said_for_the_model_has_no_logprobs(client: Client, engine: FakeEngine, fmt: ChatFormat) -> None:
    result = await post(
        client, engine, logprobs=True, reasoning_logprobs=True, reasoning_mode="reasoning", thinking_token_budget=2,
        max_tokens=50,
    )  # fmt: skip
    logprobs = result["choices"][0]["logprobs"]
    thought = "".join(entry["token"] for entry in logprobs["reasoning"])
    assert thought
    assert "so é".startswith(thought)
    assert len(logprobs["reasoning"]) < len(fmt.encode_text("so é"))
    assert "".join(entry["token"] for entry in logprobs["content"]).startswith("it ")
