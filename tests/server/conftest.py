"""What the tests of the front end share: the embedded model's chat format, and apps around a scripted engine."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import httpx
import pytest

from chat_templates.format import ChatFormat
from chat_templates.settings import THINKING
from server.app import create_app
from server.draining import DrainingServer
from server.engine_client import EngineClient
from server.http.config import server_config
from server.listeners import bind
from server.modes.profile import PROFILE_FOLDER, Profile, load_profile
from server.settings import EMBEDDED_MODEL, Settings
from tests.fake_engine import FakeEngine, Script

HELLO = [{"role": "user", "content": "Hi"}]
MODEL = "twogear-tiny"

Client = Callable[[EngineClient], AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.fixture(scope="session")
def fmt() -> ChatFormat:
    return ChatFormat.from_folder(EMBEDDED_MODEL)


@pytest.fixture(scope="session")
def profile() -> Profile:
    return load_profile(PROFILE_FOLDER / "twogear_tiny.toml")


@pytest.fixture(scope="session")
def client(fmt: ChatFormat, profile: Profile) -> Client:
    """Makes an HTTP client of an app around an engine; the app's own exceptions come back as responses."""

    @asynccontextmanager
    async def connect(engine: EngineClient) -> AsyncIterator[httpx.AsyncClient]:
        app = create_app(engine, Settings(), profile, fmt)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://twogear") as http:
            yield http

    return connect


@pytest.fixture
def thinker(fmt: ChatFormat) -> FakeEngine:
    """Thinks for ever, a token each millisecond; answers "forty" once the thinking is closed for it."""
    thinking = fmt.encode_text("hm ") * 10_000
    prompt = fmt.render(HELLO, THINKING)

    async def step() -> None:
        await asyncio.sleep(0.001)

    def script(ids: list[int]) -> Iterator[int]:
        return iter([*fmt.encode_text("forty"), fmt.end_of_turn_id] if len(ids) > len(prompt) else thinking)

    return FakeEngine(script, (fmt.end_of_turn_id,), max_context=100_000, step=step)


@asynccontextmanager
async def served(
    engine: FakeEngine, profile: Profile, fmt: ChatFormat, settings: Settings
) -> AsyncIterator[tuple[DrainingServer, int]]:
    """A server on a port of this machine, around an engine."""
    listener = bind("127.0.0.1", 0)
    app = create_app(engine, settings, profile, fmt)
    server = DrainingServer(app.state.serving, server_config(app, settings))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        yield server, listener.getsockname()[1]
    finally:
        server.should_exit = True
        await serving


def always(ids: list[int]) -> Script:
    """Writes `ids` after any prompt."""
    return lambda _prompt: iter(ids)


def body(**fields: Any) -> dict[str, Any]:
    """A chat request that is valid unless `fields` make it otherwise."""
    return {"model": MODEL, "messages": HELLO, **fields}
