"""The proxy of a replica, over HTTP. Its child, and that of another replica, are Twogears around scripted engines."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from typing import Any

import httpx
import pytest

from chat_templates.format import ChatFormat
from deploy.ray.fleet import Told
from deploy.ray.proxy import LOST, Proxy
from server.app import create_app
from server.modes.profile import Profile
from server.settings import Settings
from tests.fake_engine import FakeEngine
from tests.scripted_server import serving

HELLO = [{"role": "user", "content": "Hi"}]


class Two:
    """Two replicas: `urls` and `proxies` of both, `engines` of their children. Each thinks until it is told to end."""

    def __init__(self, stack: ExitStack, fmt: ChatFormat, profile: Profile) -> None:
        self.fmt = fmt
        self.engines = [self._engine() for _ in range(2)]
        children = [
            stack.enter_context(serving(create_app(engine, Settings(), profile, fmt))).removesuffix("/v1")
            for engine in self.engines
        ]
        self.urls: list[str] = []
        self.proxies = [Proxy(children[number], self._peers_of(number), _nothing) for number in range(2)]
        self.urls = [stack.enter_context(serving(proxy)).removesuffix("/v1") for proxy in self.proxies]
        self.children = children

    def _peers_of(self, number: int) -> Callable[[], Any]:
        async def peers() -> Sequence[str]:
            return [self.urls[1 - number]]

        return peers

    def _engine(self) -> FakeEngine:
        thought, answer = (
            self.fmt.encode_text("hm ") * 10_000,
            [*self.fmt.encode_text("forty"), self.fmt.end_of_turn_id],
        )

        def script(ids: list[int]) -> Iterator[int]:
            return iter(thought if self.fmt.is_thinking_open(ids) else answer)

        return FakeEngine(script, (self.fmt.end_of_turn_id,), max_context=100_000, step=_step)


async def _step() -> None:
    await asyncio.sleep(0.002)


async def _nothing() -> None:
    pass


@pytest.fixture(scope="module")
def two(fmt: ChatFormat, profile: Profile) -> Iterator[Two]:
    with ExitStack() as stack:
        yield Two(stack, fmt, profile)


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "twogear-tiny", "messages": HELLO, **fields}


def events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in response.iter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))


def same(response: httpx.Response) -> tuple[Any, ...]:
    """What does not differ from one answer to the next."""
    told = response.json()
    for name in ("id", "created", "created_at", "completed_at"):
        told.pop(name, None)
    return response.status_code, response.headers["content-type"], told


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/chat/completions", body()),
        ("/v1/chat/completions", body(reasoning_mode="nope")),
        ("/v1/chat/completions", body(reasonning_mode="reasoning")),
        ("/v1/completions", {"model": "twogear-tiny", "prompt": "Hi"}),
        ("/tokenize", {"prompt": "Hi"}),
        ("/v1/nothing", {}),
    ],
)
def test_an_answer_is_the_childs(two: Two, path: str, asked: dict[str, Any]) -> None:
    through, plain = (httpx.post(url + path, json=asked) for url in (two.urls[0], two.children[0]))
    assert same(through) == same(plain)


def test_what_is_asked_for_without_a_body_too(two: Two) -> None:
    assert httpx.get(two.urls[0] + "/v1/models?limit=2").status_code == 200
    assert httpx.head(two.urls[0] + "/health").status_code == 200
    assert httpx.get(two.urls[0] + "/v1/models/a%2Fb%20c").json()["error"]["code"] == "model_not_found"


def test_a_stream_comes_as_it_is_written(two: Two) -> None:
    with httpx.stream("POST", two.urls[0] + "/v1/chat/completions", json=body(stream=True)) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        text = "".join(choice["delta"].get("content", "") for one in events(response) for choice in one["choices"])
    assert text == "forty"


def test_a_client_that_leaves_frees_the_engine(two: Two) -> None:
    engine = two.engines[0]
    asked = body(stream=True, reasoning_mode="reasoning")
    with httpx.stream("POST", two.urls[0] + "/v1/chat/completions", json=asked) as response:
        next(events(response))
        until(lambda: bool(engine.under_way))  # the first event is told before the engine is asked
    until(lambda: not engine.under_way)


def test_control_reaches_the_replica_that_runs_it(two: Two) -> None:
    asked = body(stream=True, reasoning_mode="reasoning")
    with httpx.stream("POST", two.urls[0] + "/v1/chat/completions", json=asked) as response:
        told = events(response)
        path = f"/v1/chat/completions/{next(told)['id']}/control"
        assert httpx.post(two.urls[1] + path, json={"action": "end_reasoning"}).status_code == 200
        text = "".join(choice["delta"].get("content") or "" for one in told for choice in one["choices"])
    assert text == "forty"


def test_control_of_a_message_reaches_it_too(two: Two) -> None:
    asked = {**body(stream=True), "max_tokens": 50_000, "thinking": {"type": "enabled", "budget_tokens": 40_000}}
    with httpx.stream("POST", two.urls[0] + "/v1/messages", json=asked) as response:
        told = events(response)
        name = next(told)["message"]["id"]
        done = httpx.post(f"{two.urls[1]}/v1/messages/{name}/control", json={"action": "end_reasoning"})
        assert done.status_code == 200, done.text
        assert [one for one in told if one["type"] == "message_stop"]


def test_a_stored_response_is_found_from_every_replica(two: Two) -> None:
    asked = {"model": "twogear-tiny", "input": "Hi"}
    name = httpx.post(two.urls[0] + "/v1/responses", json=asked).json()["id"]
    for url in two.urls:
        assert httpx.get(f"{url}/v1/responses/{name}").json()["id"] == name
        assert httpx.get(f"{url}/v1/responses/{name}/input_items").status_code == 200
        on = httpx.post(url + "/v1/responses", json={**asked, "input": "And?", "previous_response_id": name})
        assert on.status_code == 200
        assert on.json()["previous_response_id"] == name
    assert httpx.delete(f"{two.urls[1]}/v1/responses/{name}").status_code == 200
    gone = httpx.get(f"{two.urls[1]}/v1/responses/{name}")
    assert gone.status_code == 404
    assert gone.json()["error"]["code"] == "response_not_found"


def test_what_nobody_knows_is_told_as_the_child_tells_it(two: Two) -> None:
    for path in ("/v1/chat/completions/chatcmpl-0123456789abcdef/control", "/v1/messages/msg_0123456789abcdef/control"):
        through, plain = (
            httpx.post(url + path, json={"action": "end_reasoning"}) for url in (two.urls[0], two.children[0])
        )
        assert through.status_code == plain.status_code == 404
        told, expected = through.json(), plain.json()
        told.pop("request_id", None)
        expected.pop("request_id", None)
        assert told == expected


def test_what_is_drawn_is_told_by_ticket(two: Two) -> None:
    ledger = two.proxies[0].ledger
    ledger.take()
    head = {"x-serve-router-ticket": "7"}
    whole = httpx.post(two.urls[0] + "/v1/chat/completions", json=body(), headers=head)
    until(lambda: ledger._told.get("7", Told()).over is not None)
    assert ledger.take() == {"7": Told(whole.json()["usage"]["completion_tokens"], over=True)}
    with httpx.stream(
        "POST", two.urls[0] + "/v1/chat/completions", json=body(stream=True, reasoning_mode="reasoning"), headers=head
    ) as response:
        told = events(response)
        for _ in range(20):
            next(told)
        running = ledger.take()["7"]
        assert running.over is None
        assert running.tokens >= 15
    until(lambda: ledger._told.get("7", Told()).over is not None)
    assert ledger.take()["7"].over is False
    httpx.post(two.urls[0] + "/v1/chat/completions", json=body(reasoning_mode="nope"), headers=head)
    until(lambda: ledger._told.get("7", Told()).over is not None)
    assert ledger.take() == {"7": Told(0, over=False)}


class Dying:
    """A child that ends its connection in the middle of an event, or before it answers."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with closing(connection):
                if b"stream" in connection.recv(65_536):
                    event = b'data: {"id": "chatcmpl-1"}\n\ndata: {"id": "chat'
                    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
                    connection.sendall(head + b"%x\r\n%s\r\n" % (len(event), event))
                    time.sleep(0.1)


async def _no_peers() -> Sequence[str]:
    return []


@pytest.mark.parametrize(
    ("path", "name"), [("/v1/chat/completions", ""), ("/v1/messages", "error"), ("/v1/responses", "error")]
)
def test_a_stream_whose_child_dies_ends_with_an_error_event(path: str, name: str) -> None:
    with serving(Proxy(Dying().url, _no_peers, _nothing)) as url:
        text = httpx.post(url.removesuffix("/v1") + path, json={"stream": True}).text
    first, last = [part for part in text.split("\n\n") if part]
    assert first == 'data: {"id": "chatcmpl-1"}'  # and nothing of the one that broke off
    assert last.startswith(f"event: {name}\n" if name else "data: ")
    assert LOST in last


def test_a_request_whose_child_dies_is_a_503_with_retry_after() -> None:
    proxy = Proxy(Dying().url, _no_peers, _nothing)
    with serving(proxy) as url:
        for _ in range(2):
            response = httpx.post(url + "/chat/completions", json={})
            assert response.status_code == 503
            assert response.headers["retry-after"] == "1"
            assert response.json()["error"]["message"] == LOST
            proxy.is_lost = True


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
