"""One app over a scripted engine and one event loop, for many requests: an app takes a while to make."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import httpx

from chat_templates.format import ChatFormat
from server.app import create_app
from server.modes.profile import Profile
from server.settings import Settings
from tests.fake_engine import FakeEngine, Script

CHAT = "/v1/chat/completions"


class Rig:
    """Answers chat completions by what the script of the moment writes."""

    def __init__(self, fmt: ChatFormat, profile: Profile) -> None:
        self.engine = FakeEngine(lambda _prompt: iter(()), (fmt.end_of_turn_id,))
        transport = httpx.ASGITransport(create_app(self.engine, Settings(), profile, fmt), raise_app_exceptions=False)
        self._http = httpx.AsyncClient(transport=transport, base_url="http://twogear")
        self._loop = asyncio.new_event_loop()

    @classmethod
    @contextmanager
    def opened(cls, fmt: ChatFormat, profile: Profile) -> Iterator[Self]:
        """One that is closed at the end of the block."""
        rig = cls(fmt, profile)
        yield rig
        rig._loop.run_until_complete(rig._http.aclose())
        rig._loop.close()

    def ask(self, script: Script, chunks: Sequence[int], asked: dict[str, Any]) -> httpx.Response:
        """What is answered where the engine's deltas have these sizes, in turn."""
        self.engine.script, self.engine.chunks = script, chunks
        self.engine.seen.clear()
        response = self._loop.run_until_complete(self._http.post(CHAT, json=asked))
        assert response.status_code == 200, response.text
        return response
