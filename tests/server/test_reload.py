"""SIGHUP: profile and keys anew while requests run. What is broken is refused in a line, and all stays as it was."""

import asyncio
import logging
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from chat_templates.format import ChatFormat
from server.access.keys import hash_of, keys_of
from server.app import create_app
from server.core.serving import Serving
from server.draining import DrainingServer
from server.http.config import server_config
from server.modes.profile import PROFILE_FOLDER, load_profile
from server.reloading import Reloading
from server.settings import Settings
from tests.fake_engine import FakeEngine
from tests.real_server import RealServer
from tests.server.conftest import always, body

CHAT = "/v1/chat/completions"
PROFILE = (PROFILE_FOLDER / "twogear_tiny.toml").read_text()
KEY = '[[keys]]\nname = "{0}"\nhash = "{1}"\n'
EXTRA = """
[modes.brief]
kind = "direct"
default_max_tokens = 7
max_tokens_limit = 64
"""


def key_lines(*names: str) -> str:
    return "".join(KEY.replace("{0}", name).replace("{1}", hash_of(f"sk-{name}".encode())) for name in names)


def headers(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer sk-{name}"}


class Server:
    """An app with its files, and what SIGHUP does to it."""

    def __init__(self, app: FastAPI, engine: FakeEngine, settings: Settings, http: httpx.AsyncClient) -> None:
        assert settings.profile is not None
        assert settings.api_keys is not None
        self.app, self.engine, self.http = app, engine, http
        self.profile, self.keys = settings.profile, settings.api_keys
        self.server = DrainingServer(app.state.serving, server_config(app, settings))
        self.reloading = Reloading(self.server)

    @property
    def serving(self) -> Serving:
        serving: Serving = self.app.state.serving
        return serving

    async def hang_up(self) -> None:
        self.reloading.begin()
        while self.reloading.is_busy:  # noqa: ASYNC110 - polled by nobody else
            await asyncio.sleep(0.01)

    async def modes(self, name: str = "anna") -> list[str]:
        listed = (await self.http.get("/v1/models", headers=headers(name))).json()["data"]
        return [model["reasoning_mode"] for model in listed[1:]]


@pytest.fixture
def let_go() -> asyncio.Event:
    return asyncio.Event()


@pytest.fixture
async def server(fmt: ChatFormat, tmp_path: Path, let_go: asyncio.Event) -> AsyncIterator[Server]:
    async def wait() -> None:
        await let_go.wait()

    profile, keys = tmp_path / "profile.toml", tmp_path / "keys.toml"
    profile.write_text(PROFILE)
    keys.write_text(key_lines("anna", "ben"))
    settings = Settings(profile=profile, api_keys=keys)
    engine = FakeEngine(always(fmt.encode_text("on and on " * 20)), (fmt.end_of_turn_id,), step=wait)
    app = create_app(engine, settings, load_profile(profile), fmt, keys=keys_of(keys, []))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://twogear") as http:
        yield Server(app, engine, settings, http)


async def begun(engine: FakeEngine) -> None:
    while not engine.seen:  # noqa: ASYNC110 - the fake has no event for it
        await asyncio.sleep(0.01)


async def test_modes_and_keys_are_as_their_files_say_now(server: Server, let_go: asyncio.Event) -> None:
    let_go.set()
    assert await server.modes() == ["standard", "reasoning"]
    server.profile.write_text(PROFILE.replace("default_max_tokens = 256", "default_max_tokens = 9") + EXTRA)
    server.keys.write_text(key_lines("anna", "cleo"))
    await server.hang_up()
    assert await server.modes("cleo") == ["standard", "reasoning", "brief"]
    assert (await server.http.get("/v1/models", headers=headers("ben"))).status_code == 401
    for fields, tokens in (({}, 9), ({"reasoning_mode": "brief"}, 7)):
        response = await server.http.post(CHAT, json=body(**fields), headers=headers("anna"))
        assert response.json()["usage"]["completion_tokens"] == tokens
    document = (await server.http.get("/openapi.json")).json()
    modes = document["components"]["schemas"]["ChatRequest"]["properties"]["reasoning_mode"]
    assert "brief" in str(modes)


async def test_what_runs_keeps_its_plan_and_is_not_dropped(server: Server, let_go: asyncio.Event) -> None:
    running = asyncio.create_task(server.http.post(CHAT, json=body(), headers=headers("ben")))
    await begun(server.engine)
    server.profile.write_text(PROFILE.replace("default_max_tokens = 256", "default_max_tokens = 9"))
    server.keys.write_text(key_lines("anna"))
    await server.hang_up()
    let_go.set()
    response = await running
    assert response.status_code == 200
    assert response.json()["usage"]["completion_tokens"] > 9


BROKEN: dict[str, tuple[str, str, str]] = {
    "profile": ("profile", "default_mode = 5", "Expected `str`"),
    "no mode": ("profile", PROFILE.replace('default_mode = "standard"', 'default_mode = "no"'), "default_mode"),
    "format": (
        "profile",
        PROFILE + '\n[format]\ntool_call = "<call>"\n',
        "[format] is not the one that is served",
    ),
    "template": ("profile", PROFILE.replace('template = "thinking"', 'template = "none"'), "there is no template"),
    "keys": ("keys", "[[keys]]", "missing required field"),
    "no keys": ("keys", "", "there is none"),
    "mode of a key": ("keys", key_lines("anna") + 'modes = ["fast"]', "there is no mode 'fast'"),
}


@pytest.mark.parametrize("case", BROKEN)
async def test_a_broken_file_changes_nothing(
    server: Server, let_go: asyncio.Event, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    let_go.set()
    file, content, said = BROKEN[case]
    server.keys.write_text(key_lines("anna", "cleo"))
    server.profile.write_text(PROFILE + EXTRA)
    getattr(server, file).write_text(content)
    before = server.serving.profile, server.serving.fmt, server.serving.modes
    await server.hang_up()
    (record,) = [one for one in caplog.records if one.levelno >= logging.ERROR]
    assert said in record.getMessage()
    assert "\n" not in record.getMessage()
    assert record.exc_info is None
    assert (server.serving.profile, server.serving.fmt, server.serving.modes) == before
    assert await server.modes("ben") == ["standard", "reasoning"]
    assert (await server.http.get("/v1/models", headers=headers("cleo"))).status_code == 401


async def test_a_missing_file_changes_nothing(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.keys.unlink()
    await server.hang_up()
    assert "cannot read the keys" in caplog.text
    assert await server.modes("ben") == ["standard", "reasoning"]


async def test_the_log_tells_what_was_loaded_and_no_key(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    await server.hang_up()
    assert "the modes are standard, reasoning; the keys anna, ben" in caplog.text
    assert "sk-" not in caplog.text
    assert "sha256" not in caplog.text


async def test_a_signal_while_files_are_read_counts_for_another_time(server: Server) -> None:
    server.reloading.begin()
    server.keys.write_text(key_lines("anna", "cleo"))
    await server.hang_up()
    assert await server.modes("cleo") == ["standard", "reasoning"]


async def test_a_terminal_that_is_gone_ends_the_server(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it would without a handler: nobody could end it any more."""
    monkeypatch.setattr("server.reloading._has_terminal", lambda: True)
    monkeypatch.setattr(signal, "getsignal", lambda _number: signal.SIG_DFL)
    reloading = Reloading(server.server)
    monkeypatch.setattr("server.reloading._has_terminal", lambda: False)
    reloading.begin()
    assert server.serving.draining


async def test_under_nohup_it_does_not(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.reloading._has_terminal", lambda: True)
    monkeypatch.setattr(signal, "getsignal", lambda _number: signal.SIG_IGN)
    server.reloading = Reloading(server.server)
    monkeypatch.setattr("server.reloading._has_terminal", lambda: False)
    await server.hang_up()
    assert not server.serving.draining


SCRIPTED = (sys.executable, "-m", "tests.scripted_process")


@pytest.fixture
def process(tmp_path: Path) -> Iterator[RealServer]:
    """`twogear serve` as a process of its own, with a scripted engine, and a file of keys in `tmp_path`."""
    (tmp_path / "keys.toml").write_text(key_lines("anna"))
    with RealServer("--api-keys", str(tmp_path / "keys.toml"), command=SCRIPTED) as server:
        yield server


def wait_for(condition: Callable[[], bool]) -> None:
    """The test's own time limit ends it."""
    while not condition():
        time.sleep(0.02)


def test_a_process_loads_its_keys_anew_without_dropping_a_stream(process: RealServer, tmp_path: Path) -> None:
    keys, models = tmp_path / "keys.toml", f"{process.url}/v1/models"

    def status(name: str) -> int:
        return httpx.get(models, headers=headers(name)).status_code

    assert (httpx.get(models).status_code, status("anna")) == (401, 200)
    sent = {"json": body(stream=True), "headers": headers("anna"), "timeout": 120}
    with httpx.stream("POST", process.url + CHAT, **sent) as response:  # type: ignore[arg-type]
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
        keys.write_text(key_lines("ben"))
        process.process.send_signal(signal.SIGHUP)
        wait_for(lambda: status("ben") == 200)
        assert status("anna") == 401
        assert [line for line in lines if line][-1] == "data: [DONE]"
    keys.write_text("[[keys]]")
    process.process.send_signal(signal.SIGHUP)
    wait_for(lambda: any("not loaded anew" in line for line in process.output))
    assert status("ben") == 200
    assert process.stop() == 0
    told = "\n".join(process.output)
    assert "the keys ben" in told
    assert not [secret for secret in ("sk-", "sha256", "Traceback") if secret in told]


def test_a_process_on_an_open_address_without_keys_says_so() -> None:
    with RealServer("--host", "0.0.0.0", command=SCRIPTED) as server:
        server.wait_until(200)  # this engine is ready before signals are handled
        assert server.stop() == 0
    assert [line for line in server.output if "Anyone who can reach 0.0.0.0" in line]
