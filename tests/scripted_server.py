"""A real HTTP server of this process around an engine that plays a script."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
import uvloop
from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chat_templates.format import ChatFormat
from server.app import create_app
from server.engine_client import EngineStatus
from server.listeners import bind
from server.modes.profile import Profile
from server.settings import Settings
from tests.fake_engine import FakeEngine


def app_of(engine: FakeEngine, profile: Profile, fmt: ChatFormat) -> FastAPI:
    """The front end that asks clients to come back in a second where they have to come back."""
    return create_app(engine, Settings(retry_after=1), profile, fmt)


@contextmanager
def serving(app: ASGIApp) -> Iterator[str]:
    """Serves `app` meanwhile; the URL up to and with `/v1`."""
    listener = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None))
    # As in `twogear serve`. CPython 3.11 itself leaves a connection open that comes as it stops listening (gh-109564).
    thread = threading.Thread(target=uvloop.run, args=(server.serve(sockets=[listener]),))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join()


class InOnePiece:
    """`app` with every stream of it sent as a whole, when it has ended."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        held: list[bytes] = []

        async def holding(message: Message) -> None:
            if message["type"] != "http.response.body":
                await send(message)
                return
            held.append(message.get("body", b""))
            if not message.get("more_body"):
                await send({"type": "http.response.body", "body": b"".join(held)})

        await self._app(scope, receive, holding)


class LostAtFirst:
    """`app` with its engine lost while the first request after `lose()` is answered; `refused` counts such requests."""

    def __init__(self, app: ASGIApp, engine: FakeEngine) -> None:
        self.refused = 0
        self._app = app
        self._engine = engine
        self._is_lost = False

    def lose(self) -> None:
        """Loses the engine for one request."""
        self._is_lost = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        lost = self._is_lost and scope["type"] == "http"
        if lost:
            self._is_lost = False
            self.refused += 1
            self._engine.status = EngineStatus("lost", "", 0.0)
        try:
            await self._app(scope, receive, send)
        finally:
            if lost:
                self._engine.status = EngineStatus("ready", "", 1.0)
