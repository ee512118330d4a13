"""Any request is accepted, or refused with an error of ours; it never gets a 5xx."""

import asyncio
from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from chat_templates.format import ChatFormat
from server.api.chat.body import ChatRequest
from server.api.common.refused import RETIRED
from server.api.completions.body import CompletionRequest
from server.api.responses.body import ResponseRequest
from server.api.responses.items import TYPES
from tests.fake_engine import FakeEngine
from tests.server.conftest import MODEL, Client

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
ROLES = st.sampled_from(["system", "developer", "user", "assistant", "tool"])
TEXT_PARTS = st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": st.text()}), max_size=2)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": ROLES | JSON, "content": st.text() | TEXT_PARTS | JSON},
        optional={"name": st.text() | JSON, "tool_calls": JSON, "tool_call_id": JSON, "reasoning_content": JSON},
    ),
    max_size=3,
)
NAMES = sorted({*ChatRequest.model_fields, *RETIRED} - {"messages"})
VALUES = JSON | st.sampled_from(
    [
        0,
        1,
        2,
        0.5,
        -1,
        True,
        "reasoning",
        "standard",
        MODEL,
        f"{MODEL}:reasoning",
        [],
        {},
        "required",
        [{"type": "function", "function": {"name": "f"}}],
        {"type": "json_object"},
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}},
        {"regex": "a("},
        {"choice": ["a"]},
        {"type": "function", "function": {"name": "f"}},
        {"type": "enabled"},
        {"effort": "low"},
        "high",
    ]
)
BODIES = st.builds(
    lambda messages, fields: {"messages": messages, **fields},
    MESSAGES | JSON,
    st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=12), VALUES, max_size=4),
)


def post(client: Client, fmt: ChatFormat, content: bytes, path: str = "/v1/chat/completions") -> tuple[int, str]:
    engine = FakeEngine(
        lambda _: iter([*fmt.encode_text("ab"), fmt.think_end_id, fmt.end_of_turn_id]), (fmt.end_of_turn_id,)
    )

    async def run() -> tuple[int, str]:
        async with client(engine) as http:
            response = await http.post(path, content=content)
        return response.status_code, response.text

    return asyncio.run(run())


def check(status: int, text: str) -> None:
    if status == 200:
        return
    assert 400 <= status < 500, text
    error: dict[str, Any] = orjson.loads(text)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]


@given(body=BODIES)
def test_any_fields(client: Client, fmt: ChatFormat, body: dict[str, Any]) -> None:
    check(*post(client, fmt, orjson.dumps(body)))


@given(content=st.binary(max_size=60) | JSON.map(orjson.dumps))
def test_any_body(client: Client, fmt: ChatFormat, content: bytes) -> None:
    check(*post(client, fmt, content))


PARTS = st.fixed_dictionaries({"type": st.sampled_from(["input_text", "output_text", "refusal", "input_image"])})
ITEMS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from([*TYPES, "web_search_call"]) | JSON,
            "role": ROLES | JSON,
            "content": st.text() | st.lists(PARTS | JSON, max_size=2) | JSON,
            **dict.fromkeys(("id", "call_id", "name", "arguments", "input", "output"), st.text(max_size=5) | JSON),
            **dict.fromkeys(("summary", "encrypted_content", "namespace"), st.text(max_size=5) | JSON),
        },
    ),
    max_size=4,
)


@given(
    asked=st.text() | ITEMS | JSON,
    fields=st.dictionaries(st.sampled_from(sorted(ResponseRequest.model_fields)), VALUES, max_size=4),
)
def test_any_input_of_a_response(client: Client, fmt: ChatFormat, asked: Any, fields: dict[str, Any]) -> None:
    check(*post(client, fmt, orjson.dumps({"model": MODEL, **fields, "input": asked}), "/v1/responses"))


@given(
    path=st.sampled_from(["/v1/completions", "/tokenize", "/detokenize"]),
    body=st.dictionaries(
        st.sampled_from(sorted({*CompletionRequest.model_fields, "messages", "tokens"})),
        VALUES | st.lists(st.text(max_size=3) | st.integers(0, 1100), max_size=3),
        max_size=4,
    ),
)
def test_any_fields_of_the_other_routes(client: Client, fmt: ChatFormat, path: str, body: dict[str, Any]) -> None:
    check(*post(client, fmt, orjson.dumps(body), path))
