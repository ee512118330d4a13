"""Responses and events agree with the OpenAPI document: they have the fields that it lists and no others."""

import re
from typing import Any

import httpx
import jsonschema_rs
import msgspec
import orjson
import pytest

from chat_templates.format import ChatFormat
from server.api.registry import APIS
from server.app import create_app
from server.engine_client import EngineStatus
from server.modes.profile import Profile
from server.settings import Settings
from tests.fake_engine import FakeEngine
from tests.server.conftest import HELLO, Client, body
from tests.server.test_streaming import events_of

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ALL = {"n": 2, "return_token_ids": True}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    (CHAT, body()),
    (CHAT, body(**ALL, reasoning_mode="reasoning", tools=TOOLS)),
    (CHAT, body(reasoning_mode="reasoning", thinking_token_budget=1)),
    (CHAT, body(logprobs=True, top_logprobs=2, reasoning_logprobs=True, reasoning_mode="reasoning")),
    (CHAT, body(n=200)),
    (TEXT, {"prompt": ["Once", "more"], "logprobs": 2, "echo": True, **ALL}),
    (TEXT, {"prompt": "Once"}),
    (TEXT, {}),
]


@pytest.fixture
def engine(fmt: ChatFormat) -> FakeEngine:
    """Thinks, where thinking is open, calls a tool, and answers."""
    call = [fmt.tool_call_id, *fmt.encode_text('{"name": "f", "arguments": {"a": 1}}'), fmt.tool_call_end_id]
    answer = [*call, *fmt.encode_text("é"), fmt.end_of_turn_id]
    thinking = [*fmt.encode_text("so"), *fmt.close_thinking()]
    return FakeEngine(
        lambda prompt: iter(thinking + answer if fmt.is_thinking_open(prompt) else answer), (fmt.end_of_turn_id,)
    )


class Document:
    """The OpenAPI document of an app."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document
        self._validators: dict[bytes, jsonschema_rs.Validator] = {}  # to make one takes longer than to ask it

    def check(self, path: str, method: str, status: int, media_type: str, value: Any) -> None:
        """Validates a response, or an event of a stream; one of an error that came first is an error."""
        content = self._document["paths"][path][method]["responses"][str(status)]["content"][media_type]
        schema = content["x-event"] if "x-event" in content else content["schema"]
        if media_type == "text/event-stream" and "error" in value:
            schema = {"$ref": "#/components/schemas/ErrorResponse"}
        name = orjson.dumps(schema)
        if name not in self._validators:
            self._validators[name] = jsonschema_rs.validator_for({**self._document, **schema})
        self._validators[name].validate(value)


async def test_the_document_has_all_that_it_refers_to(client: Client, engine: FakeEngine) -> None:
    async with client(engine) as http:
        text = (await http.get("/openapi.json")).text
    schemas = orjson.loads(text)["components"]["schemas"]
    assert set(re.findall(r'"#/components/schemas/(\w+)"', text)) <= set(schemas)
    for kind in {kind for api in APIS for kind in (*api.bodies, *api.answers)}:
        assert set(schemas[kind.__name__].get("properties", {})) == set(kind.model_json_schema().get("properties", {}))


@pytest.mark.parametrize(("path", "fields"), REQUESTS)
async def test_responses_and_events(client: Client, engine: FakeEngine, path: str, fields: dict[str, Any]) -> None:
    async with client(engine) as http:
        document = Document((await http.get("/openapi.json")).json())
        whole = await http.post(path, json=fields)
        document.check(path, "post", whole.status_code, "application/json", whole.json())
        for more in ({}, {"stream_options": {"include_usage": True}}):
            streamed = await http.post(path, json={**fields, "stream": True, **more})
            assert streamed.status_code == whole.status_code
            if streamed.status_code == 200:
                for event in events_of(streamed.text)[:-1]:
                    document.check(path, "post", 200, "text/event-stream", event)


async def test_an_error_within_a_stream(client: Client, engine: FakeEngine) -> None:
    engine.fail_after = 2
    async with client(engine) as http:
        document = Document((await http.get("/openapi.json")).json())
        *_, last = events_of((await http.post(CHAT, json=body(stream=True))).text)
        document.check(CHAT, "post", 200, "text/event-stream", last)


async def test_the_other_routes(client: Client, engine: FakeEngine) -> None:
    async with client(engine) as http:
        document = Document((await http.get("/openapi.json")).json())
        for path in ("/v1/models", "/health", "/version"):
            document.check(path, "get", 200, "application/json", (await http.get(path)).json())
        for path, fields in [
            ("/tokenize", {"prompt": "a"}),
            ("/tokenize", {"messages": HELLO, "return_token_strs": True}),
            ("/detokenize", {"tokens": [5]}),
        ]:
            document.check(path, "post", 200, "application/json", (await http.post(path, json=fields)).json())
        engine.status, engine.ready = EngineStatus("loading", "weights", 0.5), None
        for path in ("/v1/models", "/version"):
            document.check(path, "get", 200, "application/json", (await http.get(path)).json())
        for path, method in [("/health", "get"), (CHAT, "post")]:
            response = await http.request(method, path, json=body() if method == "post" else None)
            document.check(path, method, 503, "application/json", response.json())
            assert response.headers["retry-after"].isdecimal()


async def test_the_document_lists_the_modes_that_are_served(profile: Profile, fmt: ChatFormat) -> None:
    modes = {**profile.modes, "deep": msgspec.structs.replace(profile.modes["reasoning"], temperature=1.0)}
    app = create_app(
        FakeEngine(lambda _prompt: iter(()), ()), Settings(), msgspec.structs.replace(profile, modes=modes), fmt
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://twogear") as http:
        schemas = (await http.get("/openapi.json")).json()["components"]["schemas"]
    for kind in ("ChatRequest", "TokenizeChatRequest"):
        field = schemas[kind]["properties"]["reasoning_mode"]
        assert field["anyOf"] == [{"type": "string", "enum": ["standard", "reasoning", "deep"]}, {"type": "null"}]
