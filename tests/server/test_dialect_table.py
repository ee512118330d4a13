"""Each row of the table of dialects, as a client sends it: the same request as its own words, or an error by name."""

from typing import Any

import msgspec
import pytest

from chat_templates.format import ChatFormat
from engine.messages import Generate
from server.commands.dialects import DIALECTS, Dialect
from tests.fake_engine import FakeEngine
from tests.server.conftest import Client, body

CHAT = "/v1/chat/completions"


@pytest.fixture
def engine(fmt: ChatFormat) -> FakeEngine:
    ids = [*fmt.encode_text("so"), *fmt.close_thinking(), *fmt.encode_text("a"), fmt.end_of_turn_id]
    return FakeEngine(lambda prompt: iter(ids if fmt.is_thinking_open(prompt) else ids[-2:]), (fmt.end_of_turn_id,))


async def asked_of(client: Client, engine: FakeEngine, fields: dict[str, Any]) -> tuple[list[Generate], set[str]]:
    """What the engine was asked for, and the fields of the message that came of it."""
    engine.seen.clear()
    async with client(engine) as http:
        response = await http.post(CHAT, json=body(max_tokens=300, **fields))
    assert response.status_code == 200, response.text
    return [msgspec.structs.replace(one, request_id="") for one in engine.seen], set(
        response.json()["choices"][0]["message"]
    )


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: f"{dialect.peers} {dialect.sent}"[:80])
async def test_a_dialect_means_what_the_table_says(client: Client, engine: FakeEngine, dialect: Dialect) -> None:
    if isinstance(dialect.means, str):
        async with client(engine) as http:
            response = await http.post(CHAT, json=body(**dialect.sent))
        assert (response.status_code, response.json()["error"]["param"]) == (400, dialect.means)
        assert not engine.seen
        return
    sent = await asked_of(client, engine, dict(dialect.sent))
    assert sent == await asked_of(client, engine, dict(dialect.means))
    assert sent[0]


@pytest.mark.parametrize(
    ("fields", "field", "other"),
    [
        ({"enable_thinking": False, "reasoning_mode": "reasoning"}, "reasoning_mode", "enable_thinking"),
        ({"think": True, "reasoning_effort": "none"}, "reasoning_effort", "think"),
        ({"thinking_budget": 5, "reasoning_budget": 6}, "thinking_budget", "reasoning_budget"),
        ({"thinking_budget_tokens": 0, "think": True}, "think", "thinking_budget_tokens"),
        ({"include_reasoning": True, "reasoning": {"exclude": True}}, "reasoning.exclude", "include_reasoning"),
        ({"regex": "a", "response_format": {"type": "json_object"}}, "response_format", "regex"),
        ({"ebnf": "root ::= a", "grammar": "root ::= b"}, "ebnf", "grammar"),
        (
            {"response_format": {"type": "json_object", "schema": {}, "value": {"type": "object"}}},
            "response_format.schema",
            "response_format.value",
        ),
    ],
)
async def test_contradictions_name_both_fields(
    client: Client, engine: FakeEngine, fields: dict[str, Any], field: str, other: str
) -> None:
    async with client(engine) as http:
        response = await http.post(CHAT, json=body(**fields))
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, other)
    assert field in error["message"]
    assert other in error["message"]


async def test_a_retired_field_that_asks_for_something_else_is_refused(client: Client, engine: FakeEngine) -> None:
    async with client(engine) as http:
        asked = body(guided_regex="a", structured_outputs={"regex": "b"})
        response = await http.post(CHAT, json=asked)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "guided_regex")


@pytest.mark.parametrize("stream", [False, True])
async def test_thinking_left_out_by_include_reasoning(client: Client, engine: FakeEngine, stream: bool) -> None:
    async with client(engine) as http:
        asked = body(reasoning_effort="low", include_reasoning=False, max_tokens=300, stream=stream)
        response = await http.post(CHAT, json=asked)
    assert '"reasoning' not in response.text.replace('"reasoning_tokens"', "").replace('"reasoning_finish_reason"', "")
