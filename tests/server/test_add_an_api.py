"""docs/add-an-api.md, followed: the example on it is one folder and one registered API, and does what each API does."""

import ast
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest

from chat_templates.format import ChatFormat
from chat_templates.settings import THINKING
from server.api.registry import APIS
from server.app import create_app
from server.modes.profile import Profile
from server.settings import Settings
from tests.fake_engine import FakeEngine
from tests.server.example_api import API
from tests.server.test_http import error_of
from tests.server.test_streaming import events_of

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "add-an-api.md"
FOLDER = Path(__file__).parent / "example_api"
SHOWN = dict(re.findall(r"<!-- file (\S+) -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL))
QUESTION = {"question": "What is 38 + 45?"}


@pytest.fixture
def engine(fmt: ChatFormat) -> FakeEngine:
    """Thinks, where thinking is open, and answers."""
    answer = [*fmt.encode_text("83 é"), fmt.end_of_turn_id]
    thinking = [*fmt.encode_text("38+45"), *fmt.close_thinking()]
    return FakeEngine(
        lambda prompt: iter(thinking + answer if fmt.is_thinking_open(prompt) else answer),
        (fmt.end_of_turn_id,),
        chunks=(2,),
    )


@pytest.fixture
async def http(engine: FakeEngine, profile: Profile, fmt: ChatFormat) -> AsyncIterator[httpx.AsyncClient]:
    async with connect(engine, profile, fmt) as client:
        yield client


@asynccontextmanager
async def connect(engine: FakeEngine, profile: Profile, fmt: ChatFormat) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server that has the example beside its own APIs."""
    app = create_app(engine, Settings(), profile, fmt, (*APIS, API))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://twogear") as client:
        yield client


def test_the_page_shows_the_whole_folder() -> None:
    files = {path.relative_to(ROOT).as_posix(): path.read_text() for path in FOLDER.glob("*.py")}
    assert files == SHOWN


def test_the_registry_has_a_line_for_each_api() -> None:
    folders = {path.parent.name for path in (ROOT / "server" / "api").glob("*/routes.py")}
    registered = re.findall(r"^    (\w+)\.API,$", (ROOT / "server" / "api" / "registry.py").read_text(), re.MULTILINE)
    assert sorted(registered) == sorted(folders)


def test_the_example_stands_on_no_other_api() -> None:
    modules = [
        node.module or ""
        for text in SHOWN.values()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom)
    ]
    assert modules
    assert not [name for name in modules if name.startswith("server.api.") and not name.startswith("server.api.common")]
    assert not [name for name in modules if name.startswith(("server.modes", "engine"))]


async def test_it_answers_in_the_mode_that_is_asked_for(
    http: httpx.AsyncClient, engine: FakeEngine, fmt: ChatFormat
) -> None:
    direct = (await http.post("/ask", json={**QUESTION, "heat": 0.5})).json()
    assert direct == {"answer": "83 é", "ended": "stop", "tokens": len(fmt.encode_text("83 é")) + 1}
    assert engine.seen[-1].sampling.temperature == 0.5
    thought = (await http.post("/ask", json={**QUESTION, "instructions": "Be brief.", "gear": "reasoning"})).json()
    assert (thought["thinking"], thought["answer"]) == ("38+45", "83 é")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION["question"]}]
    assert engine.seen[-1].prompt_ids == fmt.render(messages, THINKING)
    assert engine.seen[-1].sampling.temperature == 0.6


async def test_its_budget_is_exact(profile: Profile, fmt: ChatFormat) -> None:
    script = [*fmt.encode_text("on and on and on " * 9), fmt.end_of_turn_id]
    engine = FakeEngine(lambda _prompt: iter(script), (fmt.end_of_turn_id,))
    async with connect(engine, profile, fmt) as http:
        asked = {**QUESTION, "gear": "reasoning", "think_at_most": 3, "limit": 40}
        answer = (await http.post("/ask", json=asked)).json()
    thinking = engine.seen[-1].prompt_ids[len(engine.seen[0].prompt_ids) :]
    end = fmt.think_end().token_id
    assert end is not None
    assert thinking.index(end) == 3
    assert script[0] == thinking[0]
    assert answer["thinking"]
    assert answer["answer"]
    assert answer["tokens"] == 40


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"gear": "fourth"}, "gear", 'gear must be "standard" or "reasoning", not "fourth".'),
        ({"limit": 131073}, "limit", "limit is 131073, but this mode allows at most 131072."),
        ({"limit": 4096}, "question", "in the question"),
        ({"question": 5}, "question", "question: must be a valid string."),
        ({"question": "x " * 50_000}, "question", "in the question"),
        ({"heat": 3}, "heat", "heat: "),
        ({"think_at_most": -1}, "think_at_most", "think_at_most: "),
    ],
)
async def test_errors_name_its_own_fields(
    http: httpx.AsyncClient, fields: dict[str, Any], param: str, said: str
) -> None:
    response = await http.post("/ask", json={**QUESTION, **fields})
    error = error_of(response)
    assert (response.status_code, error["param"]) == (400, param)
    assert said in error["message"]


@pytest.mark.parametrize("gear", ["standard", "reasoning"])
async def test_a_stream_is_the_response_in_parts(http: httpx.AsyncClient, gear: str) -> None:
    asked = {**QUESTION, "gear": gear}
    whole = (await http.post("/ask", json=asked)).json()
    streamed = events_of((await http.post("/ask", json={**asked, "stream": True})).text)
    gathered: dict[str, Any] = {}
    for event in streamed:
        for name, value in event.items():
            gathered[name] = gathered.get(name, "") + value if isinstance(value, str) else value
    assert gathered == whole
    assert len(streamed) > 2


async def test_its_failures_are_counted_and_told(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    await http.post("/ask", json={"question": 5})
    assert 'twogear_requests_total{mode="unknown",outcome="rejected"} 1.0' in (await http.get("/metrics")).text
    engine.fail_after = 1
    *_, last = events_of((await http.post("/ask", json={**QUESTION, "stream": True})).text)
    assert last["error"]["type"] == "service_unavailable_error"


async def test_the_openapi_document_has_it(http: httpx.AsyncClient) -> None:
    document = (await http.get("/openapi.json")).json()
    content = document["paths"]["/ask"]["post"]["responses"]["200"]["content"]
    gear = document["components"]["schemas"]["AskRequest"]["properties"]["gear"]
    assert {"type": "string", "enum": ["standard", "reasoning"]} in gear["anyOf"]
    jsonschema_rs.validate(
        {**document, **content["application/json"]["schema"]}, (await http.post("/ask", json=QUESTION)).json()
    )
    for event in events_of((await http.post("/ask", json={**QUESTION, "stream": True})).text):
        jsonschema_rs.validate({**document, **content["text/event-stream"]["x-event"]}, event)
