"""The request log: a JSON line for each request, what stands in it, and what never does."""

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from chat_templates.format import ChatFormat
from server.app import create_app
from server.cli import main
from server.engine_client import EngineStatus
from server.modes.profile import Profile
from server.settings import EMBEDDED_MODEL, Settings
from server.telemetry.observers import open_observers
from tests.fake_engine import FakeEngine
from tests.server.conftest import MODEL, body

CHAT = "/v1/chat/completions"
SECRET = "the launch code is 0000"
Connect = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.fixture
def engine(fmt: ChatFormat) -> FakeEngine:
    """Thinks "let me see" where thinking is open, and answers "forty é"."""
    answer = [*fmt.encode_text("forty é"), fmt.end_of_turn_id]
    thinking = [*fmt.encode_text("let me see"), *fmt.close_thinking()]
    script = lambda prompt: iter(thinking + answer if fmt.is_thinking_open(prompt) else answer)  # noqa: E731
    return FakeEngine(script, (fmt.end_of_turn_id,))


@pytest.fixture
def connect(engine: FakeEngine, profile: Profile, fmt: ChatFormat, tmp_path: Path) -> Connect:
    """A client of a server that logs to `tmp_path / "log"`."""

    @asynccontextmanager
    async def connect(**options: Any) -> AsyncIterator[httpx.AsyncClient]:
        settings = Settings(**{"request_log": str(tmp_path / "log"), **options})
        observers = open_observers(settings)
        app = create_app(engine, settings, profile, fmt, observers=observers)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://twogear") as http:
            yield http
        for observer in observers:
            observer.close()

    return connect


@pytest.fixture
def lines(tmp_path: Path) -> Callable[[], list[dict[str, Any]]]:
    return lambda: [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]


Lines = Callable[[], list[dict[str, Any]]]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_in_a_mode_that_thinks(
    connect: Connect, lines: Lines, engine: FakeEngine, fmt: ChatFormat, stream: bool
) -> None:
    engine.cached_tokens = 5
    async with connect() as http:
        headers = {"X-Request-Id": "mine"}
        response = await http.post(CHAT, json=body(reasoning_mode="reasoning", stream=stream), headers=headers)
    (line,) = lines()
    seconds = line.pop("seconds")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line.pop("time"))
    assert line.pop("response_id") in response.text
    reasoning = len(fmt.encode_text("let me see")) + 1
    answer = len(fmt.encode_text("forty é")) + len(fmt.close_thinking())
    prompt = len(engine.seen[0].prompt_ids)
    assert line == {
        "request_id": "mine",
        "method": "POST",
        "route": CHAT,
        "status": 200,
        "outcome": "completed",
        "model": MODEL,
        "mode": "reasoning",
        "n": 1,
        "streamed": stream,
        "tokens": {"prompt": prompt, "cached": 5, "reasoning": reasoning, "answer": answer},
        "max_tokens": 4096 - prompt,
        "finish_reasons": ["stop"],
        "reasoning_finish_reasons": ["natural"],
    }
    assert list(seconds) == ["queue", "first_token", "first_answer_token", "total"]
    assert list(seconds.values()) == sorted(seconds.values())


@pytest.mark.parametrize("stream", [False, True])
async def test_a_response_of_the_background_is_one_line_once_it_is_over(
    connect: Connect, lines: Lines, engine: FakeEngine, fmt: ChatFormat, stream: bool
) -> None:
    asked = {"model": f"{MODEL}:reasoning", "input": "Hi", "background": True, "stream": stream}
    async with connect() as http:
        begun = await http.post("/v1/responses", json=asked, headers={"X-Request-Id": "mine"})
        assert begun.status_code == 200
        while not lines():  # noqa: ASYNC110 - the log has no event
            await asyncio.sleep(0.005)
        engine.fail_after = 2
        await http.post("/v1/responses", json=asked, headers={"X-Request-Id": "lost"})
        while len(lines()) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    line, lost = lines()
    assert line["request_id"] == "mine"
    assert line["response_id"] in begun.text
    assert (line["status"], line["outcome"], line["streamed"]) == (200, "completed", stream)
    assert line["tokens"]["reasoning"] == len(fmt.encode_text("let me see")) + 1
    assert list(line["seconds"]) == ["queue", "first_token", "first_answer_token", "total"]
    assert list(line["seconds"].values()) == sorted(line["seconds"].values())
    assert (lost["request_id"], lost["status"], lost["outcome"]) == ("lost", 200, "failed")
    assert lost["error"]["type"] == "service_unavailable_error"


async def test_what_was_rejected_and_why(connect: Connect, lines: Lines, engine: FakeEngine) -> None:
    async with connect() as http:
        await http.post(CHAT, json=body(reasoning_mode=SECRET))
        await http.post(CHAT, json=body(model=SECRET))
        await http.post("/v1/completions", json={"prompt": SECRET, "max_tokens": 99999, "n": 2})
        await http.get("/v1/none", params={"api_key": SECRET})
        engine.status = EngineStatus("loading", "", 0.5)
        await http.post(CHAT, json=body())
        await http.get("/health")
    for line in lines():
        assert {"time", "request_id", "seconds"} <= set(line)
    keys = ("route", "status", "outcome", "error", "mode", "n")
    invalid = "invalid_request_error"
    assert [tuple(line.get(key) for key in keys) for line in lines()] == [
        (CHAT, 400, "rejected", {"type": invalid, "field": "reasoning_mode"}, None, 1),
        (CHAT, 404, "rejected", {"type": invalid, "code": "model_not_found", "field": "model"}, None, 1),
        (
            *("/v1/completions", 400, "rejected"),
            {"type": invalid, "code": "context_length_exceeded", "field": "prompt"},
            *("standard", 2),
        ),
        ("/v1/none", 404, "rejected", None, None, None),
        (CHAT, 503, "rejected", {"type": "service_unavailable_error"}, "standard", 1),
    ]


async def test_what_failed_in_the_engine(connect: Connect, lines: Lines, engine: FakeEngine) -> None:
    async with connect() as http:
        engine.fail_after = 2
        await http.post(CHAT, json=body())
        await http.post(CHAT, json=body(stream=True))
        engine.fail_after, engine.refuse = None, "no"
        await http.post(CHAT, json=body())
    told = [(line["status"], line["outcome"], line["error"]["type"]) for line in lines()]
    unavailable = "service_unavailable_error"
    assert told == [
        (503, "failed", unavailable),
        (200, "failed", unavailable),  # the stream had begun
        (400, "rejected", "invalid_request_error"),
    ]
    assert lines()[1]["tokens"]["answer"] == 2


async def test_several_choices_and_tokenizing(connect: Connect, lines: Lines) -> None:
    async with connect() as http:
        await http.post(CHAT, json=body(n=3, temperature=1.0))
        await http.post("/tokenize", json={"prompt": "a"})
        await http.post("/v1/chat/completions/none/control", json={"action": "end_reasoning"})
    several, tokenized, controlled = lines()
    assert (several["n"], several["finish_reasons"]) == (3, ["stop"] * 3)
    assert (tokenized["route"], tokenized["outcome"]) == ("/tokenize", "completed")
    assert "tokens" not in tokenized
    assert controlled["route"] == "/v1/chat/completions/{completion_id}/control"


async def test_no_text_unless_asked_for(connect: Connect, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": SECRET}]
    tool = {"type": "function", "function": {"name": "x", "description": SECRET, "parameters": {SECRET: 1}}}
    async with connect() as http:
        await http.post(CHAT, json=body(messages=messages, user=SECRET, stop=[SECRET], tools=[tool]))
        await http.post(CHAT, json=body(messages=messages, logit_bias={SECRET: 1}))
        await http.post(CHAT, json=body(messages=[{"role": SECRET}]))
        await http.post(CHAT, json=body(reasoning_mode="reasoning", messages=messages, stream=True))
        await http.post(CHAT, content=json.dumps(body(messages=messages))[:-1])
    text = (tmp_path / "log").read_text()
    assert len(text.splitlines()) == 5
    assert not [word for word in ("launch code", "0000", "forty", "let me see") if word in text]


async def test_text_where_it_is_asked_for(connect: Connect, lines: Lines) -> None:
    async with connect(log_text=True) as http:
        for stream in (False, True):
            await http.post(CHAT, json=body(reasoning_mode="reasoning", stream=stream))
        await http.post(CHAT, json=body(reasoning_mode="deep"))
    *answered, refused = lines()
    for line in answered:
        assert json.loads(line["body"])["messages"] == body()["messages"]
        assert line["choices"] == [{"reasoning": "let me see", "answer": "forty é"}]
    assert '"deep"' in refused["error"]["message"]


async def test_tool_calls_are_text_too(fmt: ChatFormat, engine: FakeEngine, connect: Connect, lines: Lines) -> None:
    assert fmt.tool_call_id is not None
    assert fmt.tool_call_end_id is not None
    call = fmt.encode_text('{"name": "add", "arguments": {"a": 1}}')
    engine.script = lambda _prompt: iter([fmt.tool_call_id, *call, fmt.tool_call_end_id, fmt.end_of_turn_id])
    tool = {"type": "function", "function": {"name": "add"}}
    async with connect(log_text=True) as http:
        await http.post(CHAT, json=body(tools=[tool]))
    (line,) = lines()
    assert line["choices"] == [{"tool_calls": [{"name": "add", "arguments": '{"a": 1}'}]}]
    assert "first_answer_token" in line["seconds"]  # a call is an answer


async def test_a_file_that_was_moved_away_is_made_anew(connect: Connect, lines: Lines, tmp_path: Path) -> None:
    async with connect() as http:
        await http.get("/version")
        (tmp_path / "log").rename(tmp_path / "log.1")
        await http.get("/v1/models")
    assert [line["route"] for line in lines()] == ["/v1/models"]
    assert len((tmp_path / "log.1").read_text().splitlines()) == 1


async def test_a_log_that_cannot_be_written_ends_no_request(
    connect: Connect, lines: Lines, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its folder is gone, which says one line; when it is there again, the log goes on, and says how much it lacks."""
    folder = tmp_path / "logs"
    folder.mkdir()
    async with connect(request_log=str(folder / "log")) as http:
        assert (await http.post(CHAT, json=body())).status_code == 200
        shutil.rmtree(folder)
        answers = [await http.post(CHAT, json=body(stream=True)) for _ in range(3)]
        assert all(answer.status_code == 200 and answer.text.endswith("[DONE]\n\n") for answer in answers)
        assert 'outcome="completed"' in (await http.get("/metrics")).text
        folder.mkdir()
        assert (await http.post(CHAT, json=body())).status_code == 200
    (line,) = (folder / "log").read_text().splitlines()
    assert json.loads(line)["outcome"] == "completed"
    lost, again = (record.getMessage() for record in caplog.records if record.name == "twogear.requests")
    assert "No such file or directory" in lost
    assert "3 requests" in again
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
async def test_a_full_disk_ends_no_request(
    connect: Connect, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    async with connect(request_log="/dev/full") as http:
        for _ in range(3):
            assert (await http.post(CHAT, json=body())).status_code == 200
    (told,) = (record.getMessage() for record in caplog.records if record.name == "twogear.requests")
    assert "No space left on device" in told
    assert "Traceback" not in capsys.readouterr().err


async def test_stderr(
    engine: FakeEngine, profile: Profile, fmt: ChatFormat, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(request_log="-")
    app = create_app(engine, settings, profile, fmt, observers=open_observers(settings))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://twogear") as http:
        await http.get("/version")
    assert json.loads(capsys.readouterr().err)["route"] == "/version"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--log-text"], "--log-text needs --request-log"),
        (["--request-log", "/no/such/folder/log"], "--request-log /no/such/folder/log cannot be written: No such file"),
    ],
)
def test_mistakes_are_one_line(options: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(EMBEDDED_MODEL), *options]) == 2
    assert told in capsys.readouterr().err
