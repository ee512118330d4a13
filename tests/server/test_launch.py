"""Start and end of a server with a scripted engine: what signals do to running and to new requests."""

import asyncio
import json
import signal
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection

import httpx
import pytest
import uvloop

from chat_templates.format import ChatFormat
from engine.messages import PROTOCOL_VERSION, Delta, Generate, PageNeed, Ready
from server.app import create_app
from server.draining import DrainingServer
from server.engine_client import EngineUnavailable
from server.http.config import server_config
from server.launch import committed_warning, connections_warning
from server.listeners import bind
from server.modes.profile import Profile
from server.settings import Settings
from tests.fake_engine import FakeEngine, script_of
from tests.server.conftest import body

CHAT = "/v1/chat/completions"


class HeldEngine(FakeEngine):
    """Gives its second token once it is let go; closing it fails what runs, as with the real one."""

    def __init__(self, fmt: ChatFormat) -> None:
        ids = [*fmt.encode_text("one"), *fmt.encode_text(" two"), fmt.end_of_turn_id]
        super().__init__(lambda _: iter(ids), (fmt.end_of_turn_id,), step=self._wait)
        self.let_go = threading.Event()
        self.left = threading.Event()
        self.closed = False
        self._steps = 0

    async def close(self) -> None:
        self.closed = True

    async def generate(self, request: Generate, kind: str = "") -> AsyncGenerator[Delta, None]:
        try:
            async for delta in super().generate(request):
                yield delta
        finally:
            self.left.set()

    async def _wait(self) -> None:
        self._steps += 1
        while self._steps > 1 and not self.let_go.is_set():
            if self.closed:
                raise EngineUnavailable("the server is shutting down")
            await asyncio.sleep(0.01)


class Running:
    """A server in a thread."""

    def __init__(self, engine: FakeEngine, profile: Profile, fmt: ChatFormat, settings: Settings | None = None) -> None:
        listener = bind("127.0.0.1", 0)
        settings = settings or Settings()
        app = create_app(engine, settings, profile, fmt)
        self.server = DrainingServer(app.state.serving, server_config(app, settings))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.thread = threading.Thread(target=uvloop.run, args=(self.server.serve(sockets=[listener]),))
        self.thread.start()


@pytest.fixture
def held(fmt: ChatFormat) -> HeldEngine:
    return HeldEngine(fmt)


@pytest.fixture
def running(held: HeldEngine, profile: Profile, fmt: ChatFormat) -> Iterator[Running]:
    running = Running(held, profile, fmt)
    yield running
    running.server.should_exit = True
    running.thread.join()


def test_a_termination_signal_lets_running_requests_end(running: Running, held: HeldEngine) -> None:
    with httpx.stream("POST", running.url + CHAT, json=body(stream=True)) as response:
        lines = response.iter_lines()
        assert "assistant" in next(lines)
        running.server.handle_exit(signal.SIGTERM, None)
        health = httpx.get(f"{running.url}/health")
        assert (health.status_code, health.json()["status"]) == (503, "draining")
        refused = httpx.post(running.url + CHAT, json=body())
        assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
        assert refused.headers["connection"] == "close"
        assert httpx.get(f"{running.url}/live").json() == {"status": "alive"}
        held.let_go.set()
        rest = list(lines)
    assert "data: [DONE]" in rest
    running.thread.join()
    assert held.closed


def test_ctrl_c_ends_running_requests_with_an_error(running: Running) -> None:
    with httpx.stream("POST", running.url + CHAT, json=body(stream=True)) as response:
        lines = response.iter_lines()
        assert "assistant" in next(lines)
        running.server.handle_exit(signal.SIGINT, None)
        rest = [line for line in lines if line]
    assert "shutting down" in rest[-1]
    running.thread.join()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_ends_its_generation(running: Running, held: HeldEngine, stream: bool) -> None:
    if stream:
        with httpx.stream("POST", running.url + CHAT, json=body(stream=True)) as response:
            next(response.iter_lines())
    else:
        client = HTTPConnection(running.url.removeprefix("http://"))
        client.request("POST", CHAT, json.dumps(body()), {"Content-Type": "application/json"})
        while not held.under_way:
            time.sleep(0.01)
        client.close()
    assert held.left.wait(60)
    assert not held.let_go.is_set()


class SlowThinker(FakeEngine):
    """Thinks for ever, a token every few milliseconds; answers at once where the thinking is closed."""

    def __init__(self, fmt: ChatFormat, places: int) -> None:
        def script(prompt: list[int]) -> Iterator[int]:
            if fmt.is_thinking_open(prompt):
                return script_of(fmt.encode_text(" and"), len(prompt))(prompt)
            return iter([*fmt.encode_text("so"), fmt.end_of_turn_id])

        super().__init__(
            script,
            (fmt.end_of_turn_id,),
            max_num_seqs=places,
            max_context=100_000,
            step=lambda: asyncio.sleep(0.005),
        )


def test_thinking_is_closed_in_time_so_that_all_that_was_accepted_is_answered(
    profile: Profile, fmt: ChatFormat
) -> None:
    """Those that wait for a place too."""
    running = Running(SlowThinker(fmt, places=2), profile, fmt, Settings(drain_seconds=4.0))
    asked = body(reasoning_mode="reasoning", max_tokens=60_000, temperature=0)
    with ThreadPoolExecutor(6) as threads:
        answers = [threads.submit(httpx.post, running.url + CHAT, json=asked, timeout=60) for _ in range(6)]
        while running.server.serving.running < 6:
            time.sleep(0.01)
        running.server.handle_exit(signal.SIGTERM, None)
        responses = [answer.result() for answer in answers]
    running.thread.join()
    choices = [response.json()["choices"][0] for response in responses]
    assert {response.status_code for response in responses} == {200}
    assert {choice["reasoning_finish_reason"] for choice in choices} == {"stopped"}
    assert {choice["message"]["content"] for choice in choices} == {"so"}


def test_it_listens_until_the_engine_is_closed(profile: Profile, fmt: ChatFormat) -> None:
    closing, let_go = threading.Event(), threading.Event()

    class SlowToClose(FakeEngine):
        async def close(self) -> None:
            closing.set()
            await asyncio.to_thread(let_go.wait)

    running = Running(SlowToClose(lambda _: iter([fmt.end_of_turn_id]), (fmt.end_of_turn_id,)), profile, fmt)
    running.server.handle_exit(signal.SIGTERM, None)
    assert closing.wait(60)
    health, live, late = (httpx.get(f"{running.url}/{name}") for name in ("health", "live", "v1/models"))
    assert (health.status_code, live.status_code, late.status_code) == (503, 200, 200)
    assert httpx.post(running.url + CHAT, json=body()).status_code == 503
    let_go.set()
    running.thread.join()


def test_a_limit_that_does_not_hold_is_told_at_the_start() -> None:
    blind = Ready(PROTOCOL_VERSION, "fake", "Fake", 4096, 8, (), ())
    sees = Ready(PROTOCOL_VERSION, "fake", "Fake", 4096, 8, (), (), page_needs=(PageNeed(32, 4),))
    assert committed_warning(Settings(), blind) == ""
    assert committed_warning(Settings(max_committed=2.0), sees) == ""
    assert committed_warning(Settings(max_committed=2.0), blind).startswith("--max-committed is off: ")


def test_too_few_open_files_are_told_at_the_start() -> None:
    assert connections_warning(Settings(max_connections=1)) == ""
    said = connections_warning(Settings(max_connections=1 << 30))
    assert "and not 1073741824 (--max-connections)" in said
    assert "ulimit -Hn" in said
