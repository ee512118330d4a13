"""Budgets on the real engine, whatever the model writes: with choices, stop strings, tools, grammars; streamed too.

The same with speculative tokens, of n-grams that come again.
"""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from chat_templates.format import ChatFormat
from server.settings import EMBEDDED_MODEL
from tests.real_server import RealServer
from tests.server.test_conversations import NOTE_TOOL
from tests.server.test_streaming import events_of, gathered, plain

pytestmark = pytest.mark.engine
FORMAT = ChatFormat.from_folder(EMBEDDED_MODEL)
QUESTION = [{"role": "user", "content": "What is 12 + 34 + 56?"}]
SCHEMA = {"type": "object", "properties": {"sum": {"enum": [1, 2]}}, "required": ["sum"], "additionalProperties": False}
CASES: dict[str, dict[str, Any]] = {
    "choices": {"n": 3, "temperature": 1.0, "seed": 5, "ignore_eos": True},
    "stop": {"stop": ["1", "2", "3"], "stop_token_ids": FORMAT.encode_text("4"), "temperature": 0},
    "tools": {"tools": [NOTE_TOOL], "tool_choice": "required", "parallel_tool_calls": False},
    "schema": {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}},
}
SPECULATION = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_min": 1, "prompt_lookup_max": 3}


@pytest.fixture(scope="module")
def speculating_server() -> Iterator[RealServer]:
    with RealServer("--", "--speculative-config", json.dumps(SPECULATION)) as server:
        yield server


@pytest.fixture(params=["real_server", "speculating_server"])
def server(request: pytest.FixtureRequest) -> RealServer:
    found: RealServer = request.getfixturevalue(request.param)
    return found


def ask(server: RealServer, *, stream: bool, **fields: Any) -> dict[str, Any]:
    body = {"messages": QUESTION, "reasoning_mode": "reasoning", "return_token_ids": True, **fields}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    response = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120)
    assert response.status_code == 200, response.text
    return gathered(events_of(response.text)) if stream else plain(response.json())


@pytest.mark.parametrize("case", CASES)
def test_budgets_hold(server: RealServer, case: str) -> None:
    wrap_up = "Time is up"
    for number, budget in enumerate((0, 1, 2, 3, 17, 40, 90)):
        limit = budget + 120
        fields = {**CASES[case], "thinking_token_budget": budget, "max_tokens": limit}
        result = ask(server, stream=number % 2 == 1, **fields)
        thought, thinks_once = 0, True
        for choice in result["choices"]:
            ids = choice["ids"]
            end = ids.index(FORMAT.think_end_id)
            assert end <= budget
            assert len(ids) <= limit
            assert wrap_up not in choice["content"]
            assert choice["content"] or choice["calls"] or case == "stop"
            thought += end
            if FORMAT.think_id in ids:  # drawn: another thought, which counts too, or a word of the answer
                thinks_once = False
            else:
                assert end == budget or choice["reasoning_finish_reason"] in ("natural", "stopped")
        usage = result["usage"]
        reasoning = usage["completion_tokens_details"]["reasoning_tokens"]
        assert thought <= reasoning <= (thought if thinks_once else budget * len(result["choices"]))
        assert usage["completion_tokens"] == sum(len(choice["ids"]) for choice in result["choices"])
        if case == "schema":
            assert json.loads(result["choices"][0]["content"])["sum"] in (1, 2)


@pytest.mark.parametrize("stream", [False, True])
def test_a_thought_in_circles_is_closed(real_server: RealServer, stream: bool) -> None:
    """A sum far too long for the embedded model, which writes one digit without end."""
    messages = [{"role": "user", "content": f"Calculate {' + '.join(['99999'] * 20)}."}]
    result = ask(real_server, stream=stream, messages=messages, temperature=0, max_tokens=3000)
    [choice] = result["choices"]
    assert choice["reasoning_finish_reason"] == "repetition"
    assert choice["content"]
    assert 1024 <= choice["ids"].index(FORMAT.think_end_id) < 2000
