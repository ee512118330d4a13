"""What the server refuses for its load: at once, with a reason, a count in the metrics and a time to come back."""

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
import pytest

from chat_templates.format import ChatFormat
from engine.messages import Delta, Generate, PageGroup, PageNeed
from server.app import create_app
from server.cli_errors import UsageError
from server.commands.arguments.limits import of_engine_options
from server.core.serving import Serving
from server.modes.profile import ModeLimits, Profile
from server.settings import Settings
from tests.fake_engine import FakeEngine
from tests.server.conftest import body

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
PLACES = 4
THINKER = {"reasoning_mode": "reasoning"}


class Held(FakeEngine):
    """Generates nothing until it is let go."""

    def __init__(self, fmt: ChatFormat) -> None:
        self.let_go = asyncio.Event()
        ids = [*fmt.encode_text("so"), fmt.end_of_turn_id]
        super().__init__(lambda _: iter(ids), (fmt.end_of_turn_id,), max_num_seqs=PLACES)

    async def generate(self, request: Generate, kind: str = "") -> AsyncGenerator[Delta, None]:
        await self.let_go.wait()
        async for delta in super().generate(request):
            yield delta


@dataclasses.dataclass
class Server:
    """A server whose engine is held, and those who ask it."""

    http: httpx.AsyncClient
    engine: Held
    serving: Serving
    asked: list[asyncio.Task[httpx.Response]] = dataclasses.field(default_factory=list)

    async def ask(self, number: int, **fields: Any) -> None:
        """So many requests, until each runs, waits or is answered."""
        self.asked += [asyncio.create_task(self.http.post(CHAT, json=body(**fields))) for _ in range(number)]
        for _ in range(200):
            await asyncio.sleep(0)

    async def statuses(self) -> list[int]:
        """Of all that were asked, once the engine is let go."""
        self.engine.let_go.set()
        return [response.status_code for response in await asyncio.gather(*self.asked)]

    async def metric(self, name: str) -> float:
        lines = (await self.http.get("/metrics")).text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


Serve = Callable[..., Any]


@pytest.fixture
def serve(profile: Profile, fmt: ChatFormat) -> Serve:
    @asynccontextmanager
    async def start(limits: dict[str, ModeLimits] | None = None, **settings: Any) -> AsyncIterator[Server]:
        modes = {
            name: msgspec.structs.replace(mode, limits=(limits or {}).get(name, mode.limits))
            for name, mode in profile.plain.items()
        }
        engine = Held(fmt)
        app = create_app(engine, Settings(**settings), msgspec.structs.replace(profile, modes=modes), fmt)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://twogear") as http:
            yield Server(http, engine, app.state.serving)
        assert app.state.serving.running == 0

    return start


def refusal(response: httpx.Response) -> str:
    """The message of a 503 of the right shape."""
    assert response.status_code == 503
    assert int(response.headers["Retry-After"]) >= 1
    error = response.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("service_unavailable_error", None, "overloaded")
    return str(error["message"])


async def test_a_full_queue_refuses_at_once(serve: Serve) -> None:
    async with serve(max_waiting=3) as server:
        await server.ask(PLACES + 3)
        assert not any(task.done() for task in server.asked)
        for stream in (False, True):
            message = refusal(await server.http.post(CHAT, json=body(stream=stream)))
            assert message.startswith("The server is overloaded: 3 choices wait, and at most 3 may. Try again in ")
        assert await server.metric('twogear_requests_rejected_total{reason="waiting"}') == 2
        assert await server.metric("twogear_requests_running{") == PLACES
        assert await server.metric("twogear_requests_waiting{") == 3
        assert await server.statuses() == [200] * (PLACES + 3)
        assert await server.metric("twogear_requests_running{") == await server.metric("twogear_requests_waiting{") == 0


async def test_choices_weigh_what_they_are(serve: Serve) -> None:
    async with serve(max_waiting=6) as server:
        await server.ask(1, n=PLACES + 3)
        await server.ask(1, n=4)
        await server.ask(1, n=3)
        assert [task.done() for task in server.asked] == [False, True, False]
        refusal(await server.asked[1])
        tokens = {"model": "twogear-tiny", "prompt": [[1, 2]] * 2}
        refusal(await server.http.post(COMPLETIONS, json=tokens))
        too_many = await server.http.post(CHAT, json=body(n=PLACES + 7))
        assert (too_many.status_code, too_many.json()["error"]["param"]) == (400, "n")
        assert await server.statuses() == [200, 503, 200]


async def test_thinkers_leave_room_in_the_queue_to_direct_requests(serve: Serve) -> None:
    async with serve(max_waiting=16) as server:
        await server.ask(PLACES + 14, **THINKER)
        refusal(await server.http.post(CHAT, json=body(**THINKER)))
        await server.ask(2)
        assert not any(task.done() for task in server.asked)
        refusal(await server.http.post(CHAT, json=body()))
        assert await server.statuses() == [200] * (PLACES + 16)


async def test_a_mode_has_limits_of_its_own(serve: Serve) -> None:
    async with serve({"reasoning": ModeLimits(running=1, waiting=2)}) as server:
        await server.ask(3, **THINKER)
        message = refusal(await server.http.post(CHAT, json=body(**THINKER)))
        assert "2 choices wait in mode 'reasoning', and at most 2 may" in message
        await server.ask(10)
        assert server.serving.scheduler.modes["reasoning"].running == 1
        assert server.serving.scheduler.modes["standard"].running == PLACES - 1
        assert await server.statuses() == [200] * 13


async def test_who_has_no_place_in_time_is_refused_and_others_are_not(serve: Serve) -> None:
    async with serve({"reasoning": ModeLimits(wait_seconds=60)}, max_wait_seconds=0.1) as server:
        await server.ask(1, n=PLACES + 1)
        await server.ask(1, **THINKER)
        await server.ask(1, stream=True)
        message = refusal(await server.asked[2])
        assert "no place was free within 0.1 s" in message
        assert await server.metric('twogear_requests_rejected_total{reason="deadline"}') == 1
        assert await server.statuses() == [200, 200, 503]


async def test_the_cache_is_promised_so_many_times_and_one_request_always_fits(serve: Serve) -> None:
    async with serve(max_committed=2.0) as server:
        assert server.engine.ready is not None
        groups = (PageGroup("sliding", 32, 1, 2, 3), PageGroup("global", 32, 4, 5, 8))
        needs = (PageNeed(32, 4), PageNeed(32, 1000))
        server.engine.ready = msgspec.structs.replace(server.engine.ready, page_groups=groups, page_needs=needs)
        await server.ask(1, max_tokens=3000)  # about 95 + 4 pages, of a pool of 20 twice
        refusal(await server.http.post(CHAT, json=body(max_tokens=10)))
        await server.statuses()
        server.engine.let_go.clear()
        await server.ask(3, max_tokens=300)  # about 10 + 4 pages each
        assert [task.done() for task in server.asked] == [True, False, False, True]
        assert "promised 2 times" in refusal(await server.asked[3])
        await server.statuses()


async def test_vllms_own_limits_are_kept(serve: Serve) -> None:
    options = ["--max-num-queued-reqs", "5", "--dtype", "auto", "--max_num_queued_tokens=1K"]
    assert of_engine_options(options) == {"max_in_flight": 5, "max_waiting_tokens": 1024}
    for wrong in (["--max-num-queued-reqs"], ["--max-num-queued-reqs", "many"], ["--max-num-queued-tokens=-1"]):
        with pytest.raises(UsageError, match=f"^{wrong[0].partition('=')[0]} must be a number"):
            of_engine_options(wrong)
    async with serve(max_in_flight=5) as server:
        await server.ask(5)
        assert "at most 5 choices may run and wait" in refusal(await server.http.post(CHAT, json=body()))
        assert await server.statuses() == [200] * 5
    async with serve(max_waiting_tokens=1) as server:
        await server.ask(PLACES + 1)
        assert "tokens wait" in refusal(await server.http.post(CHAT, json=body()))
        assert await server.statuses() == [200] * (PLACES + 1)


async def test_who_leaves_while_it_waits_makes_room(serve: Serve) -> None:
    async with serve(max_waiting=2, max_waiting_tokens=1000, max_committed=100) as server:
        await server.ask(PLACES + 2, stream=True)
        for task in server.asked:
            task.cancel()
        await asyncio.gather(*server.asked, return_exceptions=True)
        server.asked.clear()
        await server.ask(PLACES + 2)
        assert await server.statuses() == [200] * (PLACES + 2)
        assert [mode.queued for mode in server.serving.scheduler.modes.values()] == [0, 0]


async def test_the_pause_follows_the_pace_of_the_queue(serve: Serve) -> None:
    async with serve(max_waiting=8) as server:
        await server.ask(PLACES + 8)
        first = await server.http.post(CHAT, json=body())
        assert 1 <= int(first.headers["Retry-After"]) <= 60
        assert await server.statuses() == [200] * (PLACES + 8)
