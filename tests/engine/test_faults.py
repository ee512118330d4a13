"""What becomes of an engine that hangs, crashes or talks nonsense; the process is scripted, so no model is loaded."""

import asyncio
import errno
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from engine.messages import Adapter
from server.engine_client import EngineLost, EngineUnavailable
from server.engine_process import EngineProcess
from server.engine_supervisor import _LONG_SILENCE
from server.process_engine_client import ProcessEngineClient
from tests.engine.conftest import ROOT, begin, collect, request, token_ids, until
from tests.engine.scripted_process import TOKENS

MOST_SECONDS = 5.0
"""For a step, or a start's next sign of life: a busy machine lets each process go on within it."""
Start = Callable[..., AbstractAsyncContextManager[ProcessEngineClient]]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Starts a scripted engine whose third request meets the fault, once."""
    monkeypatch.setattr("server.engine_supervisor._FIRST_PAUSE", 0.3)
    package = tmp_path / "engine"
    package.mkdir()
    package.joinpath("__init__.py").touch()
    package.joinpath("__main__.py").write_text(
        "import runpy, sys\n"
        f"sys.path.remove({str(tmp_path)!r})\n"
        "del sys.modules['engine']\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        f"runpy.run_path({str(ROOT / 'tests/engine/scripted_process.py')!r}, run_name='__main__')\n"
    )

    @asynccontextmanager
    async def begin(
        fault: str, most_seconds: float = 300.0, adapters: Sequence[Adapter] = ()
    ) -> AsyncIterator[ProcessEngineClient]:
        environment = {"PYTHONPATH": str(tmp_path), "FAULT": fault, "ONCE": str(tmp_path / "once")}
        client = ProcessEngineClient("model", (), environment, adapters=adapters, most_seconds=most_seconds)
        await client.start()
        try:
            yield client
        finally:
            await client.close()

    return begin


async def ready(client: ProcessEngineClient) -> None:
    await until(lambda: client.status.state == "ready")


async def lose(client: ProcessEngineClient) -> EngineLost:
    """Two good requests, then the one that meets the fault; what it was told."""
    await ready(client)
    for _ in range(2):
        assert await token_ids(client, request([5])) == [7] * TOKENS
    with pytest.raises(EngineLost) as caught:
        await collect(client, request([5]))
    return caught.value


@pytest.mark.parametrize(
    ("fault", "culprit"),
    [
        ("endless_loop", "in endless_loop"),
        ("endless_native_code", "in endless_native_code"),
        ("deadlock", "in deadlock"),
        ("stop", "in stop"),
    ],
)
async def test_a_hung_step_is_noticed_shown_and_ended(
    start: Start, caplog: pytest.LogCaptureFixture, fault: str, culprit: str
) -> None:
    async with start(fault, most_seconds=MOST_SECONDS) as client:
        first = client.pid
        error = await lose(client)
        assert str(error) == "the engine hung while it worked on this request"
        assert (client.status.state, client.status.detail) == ("lost", "the engine hung")
        with pytest.raises(EngineUnavailable, match="the engine is lost: the engine hung"):
            await collect(client, request([5]))
        await ready(client)
        assert client.pid != first
        assert client.restarts == {"hang": 1}
        assert await token_ids(client, request([5])) == [7] * TOKENS
    records = [(record.levelno, record.getMessage()) for record in caplog.records if record.levelno >= logging.WARNING]
    (stacks,) = (text for level, text in records if level == logging.ERROR and text.startswith("Stacks"))
    assert culprit in stacks
    (loss,) = (text for _, text in records if text.startswith("The engine was lost"))
    assert "Cause: hang; stage: serving; it was killed by this server" in loss
    assert "the engine begins" in loss
    assert "in endless" not in loss
    assert any(text.startswith("The engine is back") for _, text in records)


async def test_a_machine_that_starts_no_process_is_asked_again(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it may be for a while, for want of memory, processes or files."""
    begin, left = EngineProcess.start, 2

    async def refused(arguments: Sequence[str], environment: Mapping[str, str]) -> EngineProcess:
        nonlocal left
        left -= 1
        if left >= 0:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return await begin(arguments, environment)

    monkeypatch.setattr(EngineProcess, "start", refused)
    async with start("crash") as client:
        await until(lambda: client.status.state == "lost")
        assert client.status.detail.startswith("the engine could not be started; starting again in")
        assert "Resource temporarily unavailable" in client.status.reason
        await ready(client)
        assert client.restarts == {"crash": 2}
        assert await token_ids(client, request([5])) == [7] * TOKENS


async def test_a_machine_that_starts_no_process_at_all_is_final(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(*_: object) -> EngineProcess:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(EngineProcess, "start", refused)
    async with start("crash") as client:
        await until(lambda: client.status.final)
        assert client.status.detail == "the engine could not be started"


async def test_a_hang_is_noticed_though_the_client_has_left(start: Start) -> None:
    async with start("deadlock", most_seconds=MOST_SECONDS) as client:
        await ready(client)
        for _ in range(2):
            await token_ids(client, request([5]))
        leaving = await begin(client, request([5]))
        await until(lambda: client._supervisor._steps.silence >= _LONG_SILENCE)  # it owes a report from then on
        leaving.cancel()
        await asyncio.wait([leaving])
        await until(lambda: client.restarts == {"hang": 1})
        await ready(client)
        assert await token_ids(client, request([5])) == [7] * TOKENS


async def test_a_start_without_a_sign_of_life_is_ended(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    async with start("load", most_seconds=2.0) as client:
        await until(lambda: client.status.final)
        assert client.status.detail == "the engine hung"
        assert "while loading the weights" in client.status.reason
    assert sum("Cause: hang; stage: loading the weights" in record.getMessage() for record in caplog.records) == 3


class Told(NamedTuple):
    """Of a fault: its cause for the metric, words for clients, words for the log."""

    cause: str
    public: str
    logged: str


ENDS = {
    "crash": Told("crash", "the engine was killed by SIGSEGV (11)", "Fatal Python error: Segmentation fault"),
    "exit": Told("crash", "the engine ended with status 3", "/some/path is gone"),
    "error": Told("error", "the engine failed", "KeyError: '/some/path'"),
    "garbage": Told("protocol", "the engine failed", "it sent what is no message"),
}


@pytest.mark.parametrize("fault", ENDS)
async def test_an_end_is_told_in_words_to_clients_and_in_full_to_the_log(
    start: Start, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    cause, public, logged = ENDS[fault]
    async with start(fault) as client:
        error = await lose(client)
        assert str(error) in {f"{words} while it worked on this request" for words in (public, "the engine died")}
        await until(lambda: client.restarts == {cause: 1})
        assert client.status.detail.startswith(public)
        assert "/some/path" not in client.status.detail
        await ready(client)
    (loss,) = (record for record in caplog.records if record.getMessage().startswith("The engine was lost"))
    assert loss.levelno == logging.ERROR
    assert f"Cause: {cause}; stage: serving" in loss.getMessage()
    assert logged in loss.getMessage()


async def test_all_that_ran_at_an_end_is_told_to_each(start: Start) -> None:
    async with start("exit") as client:
        await ready(client)
        await token_ids(client, request([5]))
        requests = [request([5]) for _ in range(3)]
        outcomes = await asyncio.gather(*(collect(client, one) for one in requests), return_exceptions=True)
        lost = [outcome for outcome in outcomes if isinstance(outcome, EngineLost)]
        assert len(lost) == 2
        assert {error.number for error in lost} == {1}
        assert {error.running for error in lost} == {frozenset(one.request_id for one in requests[1:])}


async def test_what_was_sent_before_the_end_is_not_lost_to_a_write_that_fails_first(start: Start) -> None:
    async with start("exit") as client:
        await ready(client)
        await token_ids(client, request([5]))
        first, second = (asyncio.create_task(token_ids(client, request([5]))) for _ in range(2))
        await asyncio.sleep(0)  # both are with the engine, which ends over the second
        time.sleep(1.0)  # noqa: ASYNC251 - the loop reads nothing meanwhile
        with pytest.raises(EngineLost):
            await collect(client, request([5]))
        assert await first == [7] * TOKENS
        with pytest.raises(EngineLost):
            await second


async def test_an_adapter_that_cannot_be_loaded_ends_the_first_start(start: Start, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.touch()
    adapters = [Adapter(1, "there", str(there)), Adapter(2, "absent", str(tmp_path / "absent"))]
    async with start("none", adapters=adapters) as client:
        await until(lambda: client.status.final)
        assert client.status.reason == "the adapter 'absent' cannot be loaded: it is gone"
        assert client.ready is None


async def test_later_it_ends_its_own_requests_alone(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    there = tmp_path / "there"
    there.touch()
    async with start("crash", adapters=[Adapter(1, "there", str(there))]) as client:
        await ready(client)
        there.unlink()
        await lose(client)
        await ready(client)
        assert await token_ids(client, request([5])) == [7] * TOKENS
        assert "the adapter 'there' cannot be loaded: it is gone; requests for it are refused" in caplog.messages


async def test_who_loads_an_adapter_is_told_of_the_engines_end(start: Start, tmp_path: Path) -> None:
    silent = tmp_path / "silent"
    os.mkfifo(silent)
    async with start("none") as client:
        await ready(client)
        loading = asyncio.create_task(client.load_adapter(Adapter(1, "late", str(silent))))
        await asyncio.sleep(0)
        assert client.pid is not None
        os.kill(client.pid, signal.SIGKILL)
        with pytest.raises(EngineLost):
            await loading
