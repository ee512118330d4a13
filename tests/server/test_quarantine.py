"""A request that ends the engine twice is refused; those who only ran beside it are not."""

import asyncio
from collections.abc import AsyncGenerator
from itertools import count
from typing import Any

import httpx
import pytest

from chat_templates.format import ChatFormat
from engine.messages import Delta, Generate
from server.core import quarantine
from server.engine_client import EngineLost, RequestBroke
from tests.fake_engine import FakeEngine
from tests.server.conftest import Client, body

CHAT = "/v1/chat/completions"


class Mortal(FakeEngine):
    """Is lost, with all that runs, when a prompt holds the word; `broken`: only that request fails."""

    def __init__(self, fmt: ChatFormat, word: str, *, broken: bool = False) -> None:
        self._word = fmt.encode_text(word)
        self._broken = broken
        self._running: dict[str, asyncio.Event] = {}
        self._numbers = count(1)
        self._error: Exception | None = None
        self.losses = 0
        ids = [*fmt.encode_text("well" * 30), fmt.end_of_turn_id]
        super().__init__(lambda _: iter(ids), (fmt.end_of_turn_id,), step=lambda: asyncio.sleep(0.002))

    async def generate(self, request: Generate, kind: str = "") -> AsyncGenerator[Delta, None]:
        event = self._running[request.request_id] = asyncio.Event()
        try:
            if self._is_deadly(request.prompt_ids):
                await asyncio.sleep(0.01)  # others have begun meanwhile
                self._lose()
            async for delta in super().generate(request):
                if event.is_set():
                    assert self._error is not None
                    raise self._error
                yield delta
        finally:
            self._running.pop(request.request_id, None)

    def _is_deadly(self, ids: list[int]) -> bool:
        return any(ids[at : at + len(self._word)] == self._word for at in range(len(ids)))

    def _lose(self) -> None:
        if self._broken:
            raise RequestBroke("/some/path")
        self.losses += 1
        self._error = EngineLost("the engine died", next(self._numbers), frozenset(self._running))
        running, self._running = self._running, {}
        for event in running.values():
            event.set()


def asking(text: str, **fields: Any) -> dict[str, Any]:
    return body(messages=[{"role": "user", "content": text}], **fields)


async def outcome(http: httpx.AsyncClient, text: str, **fields: Any) -> tuple[int, str]:
    """Status and error code, as a client that sends again what is to be sent again gets them in the end."""
    for _ in range(20):
        response = await http.post(CHAT, json=asking(text, **fields))
        if response.status_code != 503:
            break
        assert response.json()["error"]["message"].endswith("Try again.")
    error = response.json().get("error") or {"code": ""}
    return response.status_code, error["code"]


async def test_what_ends_the_engine_twice_is_refused_with_a_clear_error(client: Client, fmt: ChatFormat) -> None:
    engine = Mortal(fmt, "poison")
    async with client(engine) as http:
        first = await http.post(CHAT, json=asking("poison"))
        assert (first.status_code, first.headers["retry-after"]) == (503, "2")
        for _ in range(3):
            response = await http.post(CHAT, json=asking("poison"))
            error = response.json()["error"]
            assert (response.status_code, error["code"]) == (400, "request_quarantined")
            assert error["message"].startswith("The engine was lost twice while it worked on this request.")
            assert "Try again" not in error["message"]
        assert engine.losses == 2
        assert (await http.post(CHAT, json=asking("other"))).status_code == 200


async def test_those_who_ran_beside_it_are_answered_though_they_come_again(client: Client, fmt: ChatFormat) -> None:
    engine = Mortal(fmt, "poison")
    async with client(engine) as http:
        innocents = [outcome(http, f"question {number}", n=1 + number % 3) for number in range(8)]
        *others, poison = await asyncio.gather(*innocents, outcome(http, "poison"))
    assert poison == (400, "request_quarantined")
    assert others == [(200, "")] * 8
    assert engine.losses <= 3


async def test_an_answer_in_between_clears(client: Client, fmt: ChatFormat) -> None:
    """The engine was ended by something else, twice, and the same short request happened to run."""
    engine = Mortal(fmt, "poison")
    async with client(engine) as http:
        for kind in ("first", "second", "third"):
            statuses = await asyncio.gather(
                *(http.post(CHAT, json=asking(text)) for text in ("usual question", f"poison {kind}"))
            )
            assert {response.status_code for response in statuses} == {503}
            assert (await http.post(CHAT, json=asking("usual question"))).status_code == 200
    assert engine.losses == 3


async def test_a_refusal_ends(client: Client, fmt: ChatFormat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine, "SECONDS", 0.0)
    engine = Mortal(fmt, "poison")
    async with client(engine) as http:
        for _ in range(6):
            await http.post(CHAT, json=asking("poison"))
    assert engine.losses == 6


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_a_step_fails_on_is_refused_at_once(client: Client, fmt: ChatFormat, stream: bool) -> None:
    engine = Mortal(fmt, "poison", broken=True)
    async with client(engine) as http:
        for _ in range(3):
            response = await http.post(CHAT, json=asking("poison", stream=stream))
            assert response.status_code == 400
            assert response.json()["error"]["code"] == "request_quarantined"
            assert "the server's log says why" in response.json()["error"]["message"]
            assert "/some/path" not in response.text
        assert len(engine.seen) == 0
