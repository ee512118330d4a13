"""Thoughts that end early on the real engine: the same up to there, trials on their pages, nothing left behind."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import httpx
import msgspec
import pytest

from engine.messages import Delta, Generate
from server.app import create_app
from server.modes.early_end import EarlyEnd
from server.process_engine_client import ProcessEngineClient
from server.settings import Settings
from tests.engine.conftest import PAGE, until
from tests.engine.test_auto import FORMAT, PROFILE, SCHEMA, TOOL
from tests.server.test_auto import CHAT
from tests.server.test_early_end import SURE, with_rule
from tests.server.test_streaming import events_of, gathered, plain

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]
QUESTION = "What is 12 + 34 + 56 + 78 + 90 + 123? " * 8
RULE = EarlyEnd(every=16, agreeing=2, answer_tokens=12, threshold=SURE)
ONE = msgspec.structs.replace(RULE, agreeing=1)
NEVER = msgspec.structs.replace(RULE, threshold=0.0, signal="mean")
CASES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "drawn": {"temperature": 1.0, "seed": 7, "n": 3},
    "a form": {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}},
    "a call": {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False},
    "log-probabilities": {"temperature": 0, "logprobs": True, "reasoning_logprobs": True},
    "a budget": {"temperature": 0, "thinking_token_budget": 20},
    "a stop string": {"temperature": 0, "stop": ["1"]},
}


class Watched:
    """An engine client that notes the trials: what was asked, and what came of it."""

    def __init__(self, engine: ProcessEngineClient) -> None:
        self._engine = engine
        self.trials: dict[str, tuple[Generate, list[Delta]]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def generate(self, request: Generate, kind: str = "") -> AsyncIterator[Delta]:
        async with aclosing(self._engine.generate(request, kind)) as deltas:
            async for delta in deltas:
                if kind.endswith("trial"):
                    self.trials.setdefault(request.request_id, (request, []))[1].append(delta)
                yield delta

    @property
    def drawn(self) -> int:
        return sum(len(delta.token_ids) for _, deltas in self.trials.values() for delta in deltas)


@asynccontextmanager
async def served(engine: Any, rule: EarlyEnd | None) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(engine, Settings(), with_rule(PROFILE, rule), FORMAT)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://twogear", timeout=120) as http:
        yield http


async def ask(http: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": fields.pop("question", QUESTION)}]
    asked = {
        "messages": messages,
        "reasoning_mode": "reasoning",
        "seed": 7,
        "max_tokens": 300,
        "return_token_ids": True,
        **fields,
    }
    response = await http.post(CHAT, json=asked)
    assert response.status_code == 200, response.text
    return gathered(events_of(response.text)) if fields.get("stream") else plain(response.json())


async def test_a_thought_ends_early_and_is_the_same_up_to_there(engine: ProcessEngineClient) -> None:
    watched = Watched(engine)
    async with served(engine, None) as http:
        whole = await ask(http, temperature=0)
    async with served(watched, ONE) as http:
        early = await ask(http, temperature=0)
    (own,), (choice,) = whole["choices"], early["choices"]
    assert (own["reasoning_finish_reason"], choice["reasoning_finish_reason"]) == ("natural", "confident")
    ((trial, deltas),) = watched.trials.values()
    drawn = [token_id for delta in deltas for token_id in delta.token_ids]
    size = 16 + len(drawn) + 4
    thought = whole["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert size < thought
    assert choice["ids"][:size] == own["ids"][:size]
    assert choice["ids"][size : size + 2] != own["ids"][size : size + 2]
    assert choice["content"]
    prompt = len(trial.prompt_ids) - len(trial.prompt_ids) % PAGE
    assert (deltas[0].cached_tokens or 0) >= prompt - 2 * PAGE
    details = early["usage"]["completion_tokens_details"]
    assert details["trial_tokens"] == len(drawn) == watched.drawn
    assert early["usage"]["completion_tokens"] == len(choice["ids"])


@pytest.mark.parametrize("case", CASES)
async def test_streamed_or_not_it_ends_at_the_same_token(engine: ProcessEngineClient, case: str) -> None:
    async with served(engine, RULE) as http:
        answers = [await ask(http, **CASES[case], **more) for more in ({}, {}, STREAMED)]
    reasons = {choice["reasoning_finish_reason"] for choice in answers[0]["choices"]}
    assert reasons == {"budget"} if case == "a budget" else "confident" in reasons
    assert [alike(answer) for answer in answers[1:]] == [alike(answers[0])] * 2


STREAMED = {"stream": True, "stream_options": {"include_usage": True}}


def alike(answer: dict[str, Any]) -> dict[str, Any]:
    """Log-probabilities are the same to rounding only, and a trial that is broken off has drawn what it has drawn."""
    usage = {name: value for name, value in answer["usage"].items() if not name.endswith("_details")}
    usage["reasoning_tokens"] = answer["usage"]["completion_tokens_details"]["reasoning_tokens"]
    choices = [{name: value for name, value in one.items() if name != "logprobs"} for one in answer["choices"]]
    return {"usage": usage, "choices": choices}


async def test_many_at_once_end_where_each_ends_alone(engine: ProcessEngineClient) -> None:
    questions = [f"What is {n} + 34 + 56 + 78 + {n * 7}?" for n in range(11, 19)]
    watched = Watched(engine)
    async with served(watched, RULE) as http:
        alone = [await ask(http, question=question, temperature=0) for question in questions]
        watched.trials.clear()
        together = await asyncio.gather(*(ask(http, question=question, temperature=0) for question in questions))
    assert [alike(answer) for answer in together] == [alike(answer) for answer in alone]
    assert sum(one["usage"]["completion_tokens_details"]["trial_tokens"] for one in together) == watched.drawn


async def test_trials_that_are_not_sure_change_nothing(engine: ProcessEngineClient) -> None:
    async with served(engine, None) as http:
        whole = await ask(http, temperature=0)
    async with served(engine, NEVER) as http:
        tried = await ask(http, temperature=0)
    assert tried["usage"]["completion_tokens_details"]["trial_tokens"] > 0
    assert alike(tried) == alike(whole)


async def test_a_client_that_leaves_leaves_no_trial_behind(engine: ProcessEngineClient) -> None:
    watched = Watched(engine)
    rule = msgspec.structs.replace(NEVER, answer_tokens=1024, every=16)
    async with served(watched, rule) as http:
        fields = {"temperature": 0, "max_tokens": 6000, "ignore_eos": True, "thinking_token_budget": 4000}
        asked = asyncio.create_task(ask(http, **fields))
        await until(lambda: watched.trials)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
    assert not any(engine.is_running(request_id) for request_id in watched.trials)
    await until(lambda: engine.stats is not None and engine.stats.running == engine.stats.waiting == 0)
