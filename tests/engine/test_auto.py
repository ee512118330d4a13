"""Modes of kind `auto` on the real engine: the chosen mode's answer, on the pages that the draft has left."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from chat_templates.format import ChatFormat
from server.app import create_app
from server.modes.profile import PROFILE_FOLDER, Profile, load_profile
from server.process_engine_client import ProcessEngineClient
from server.settings import EMBEDDED_MODEL, Settings
from tests.engine.conftest import until
from tests.server.test_auto import CHAT, CHOSEN, DROPPED, KEPT, UNFORESEEN, with_auto, without_choice
from tests.server.test_streaming import events_of, gathered, plain

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]
FORMAT = ChatFormat.from_folder(EMBEDDED_MODEL)
PROFILE: Profile = load_profile(PROFILE_FOLDER / "twogear_tiny.toml")
QUESTION = "What is 12 + 34 + 56? " * 12
SCHEMA = {"type": "object", "properties": {"sum": {"enum": [1, 2]}}, "required": ["sum"], "additionalProperties": False}
TOOL = {"type": "function", "function": {"name": "note", "parameters": SCHEMA}}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "drawn": {"temperature": 1.0, "n": 3},
    "logprobs": {"logprobs": True, "top_logprobs": 3, "temperature": 0},
    "budget": {"thinking_token_budget": 9, "temperature": 0},
    "schema": {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}},
    "a call": {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False},
    "a limit": {"max_tokens": 2},
    "a grammar": {"structured_outputs": {"regex": "(12|34)( and [a-z]{3}){1,4}"}, "temperature": 1.0},
    "a stop string": {"stop": ["1"], "temperature": 0},
}


@pytest_asyncio.fixture(loop_scope="session", params=[KEPT, DROPPED])
async def served(engine: ProcessEngineClient, request: pytest.FixtureRequest) -> AsyncIterator[tuple[Any, str]]:
    """An app that keeps all drafts, or none, with the mode that it comes to."""
    app = create_app(engine, Settings(), with_auto(PROFILE, request.param, 30), FORMAT)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://twogear", timeout=120) as http:
        yield http, CHOSEN[request.param]


async def ask(http: httpx.AsyncClient, mode: str, **fields: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": QUESTION}], "reasoning_mode": mode, "seed": 7, **fields}
    response = await http.post(CHAT, json={"max_tokens": 120, "return_token_ids": True, **body})
    assert response.status_code == 200, response.text
    if fields.get("stream"):
        return gathered(events_of(response.text))
    return plain(response.json())


def alike(answer: dict[str, Any]) -> dict[str, Any]:
    """What is the same in every batch: greedy tokens and those of a seed are, log-probabilities only to rounding."""
    answer = without_choice(answer)
    for choice in answer["choices"]:
        choice.pop("logprobs", None)
    details = answer["usage"].get("prompt_tokens_details") or {}
    details.pop("cached_tokens", None)
    return answer


@pytest.mark.parametrize("case", CASES)
async def test_it_answers_as_the_mode_that_it_chose(served: tuple[httpx.AsyncClient, str], case: str) -> None:
    http, chosen = served
    fields = CASES[case]
    own = await ask(http, chosen, **fields)
    for more in ({}, {"stream": True, "stream_options": {"include_usage": True}}):
        answer = await ask(http, "auto", **fields, **more)
        assert alike(answer) == alike(own)


async def test_a_thought_that_takes_over_computes_no_page_of_the_prompt_again(
    served: tuple[httpx.AsyncClient, str],
) -> None:
    http, chosen = served
    messages = [{"role": "user", "content": f"{chosen} {QUESTION}"}]  # that no other test has asked
    usage = (await ask(http, "auto", messages=messages, max_tokens=60))["usage"]
    details = usage["completion_tokens_details"]
    if chosen == "standard":
        assert (details["draft_tokens"], details["found_again_tokens"]) == (0, 0)
    else:
        assert details["draft_tokens"] > 0
        assert details["found_again_tokens"] > usage["prompt_tokens"] - 64  # all but the last pages of 32
    assert usage["prompt_tokens_details"]["cached_tokens"] < 64


async def test_a_client_that_leaves_ends_the_draft(engine: ProcessEngineClient) -> None:
    app = create_app(engine, Settings(), with_auto(PROFILE, KEPT, 4096), FORMAT)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://twogear") as http:
        asked = asyncio.create_task(ask(http, "auto", max_tokens=7000, ignore_eos=True))
        await until(lambda: engine.stats is not None and engine.stats.running)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
    await until(lambda: engine.stats is not None and engine.stats.running == engine.stats.waiting == 0)


async def test_a_draft_that_is_told_to_end_is_the_answer(engine: ProcessEngineClient) -> None:
    app = create_app(engine, Settings(), with_auto(PROFILE, DROPPED, 4096, signal=UNFORESEEN), FORMAT)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://twogear", timeout=120) as http:
        asked = asyncio.create_task(ask(http, "auto", max_tokens=1500, ignore_eos=True))
        await until(lambda: app.state.serving.choices)
        (name,) = app.state.serving.choices
        told = (await http.post(f"{CHAT}/{name}/control", json={"action": "end_reasoning"})).json()
        answer = await asked
    assert told["choices"] == [0]
    (choice,) = answer["choices"]
    assert choice["content"]
    assert (choice["reasoning"], choice["reasoning_finish_reason"]) == ("", None)
    assert answer["usage"]["completion_tokens_details"]["draft_tokens"] == 0
