"""The engine process's ends: its own errors, kill -9, a model that is not there, a front end that dies."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from server.engine_client import EngineUnavailable
from server.process_engine_client import ProcessEngineClient
from tests.engine import FATAL_PRIORITY
from tests.engine.conftest import MAX_CONTEXT, MODEL, begin, collect, prompt, request, token_ids, until

pytestmark = [pytest.mark.asyncio(loop_scope="session")]


async def start(model: str, *options: str, **environment: str) -> ProcessEngineClient:
    client = ProcessEngineClient(model, options, environment)
    await client.start()
    return client


def is_alive(pid: int) -> bool:
    """A process that ended and was not yet reaped counts as dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_a_missing_model_is_one_line_and_final() -> None:
    client = await start("/nowhere/at-all")
    await until(lambda: client.status.final)
    assert client.status.state == "lost"
    assert client.status.reason.startswith("no model folder at /nowhere/at-all;")
    assert "\n" not in client.status.reason
    assert client.pid is None
    with pytest.raises(EngineUnavailable, match="the engine failed"):  # whose folder it is, is not for clients
        await collect(client, request([5]))
    await client.close()


async def test_a_crash_before_the_first_ready_is_tried_again_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.engine_supervisor._FIRST_PAUSE", 0.0)
    starts = tmp_path / "starts"
    package = tmp_path / "vllm"
    package.mkdir()
    package.joinpath("__init__.py").write_text(
        f"import os, signal\nopen({str(starts)!r}, 'a').write('x')\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    client = await start(str(MODEL), PYTHONPATH=str(tmp_path))
    await until(lambda: client.status.final)
    assert client.status.detail == "the engine was killed by SIGKILL (9), perhaps out of memory while importing vLLM"
    assert starts.read_text() == "xxx"
    await client.close()


async def test_requests_before_ready_are_told_so() -> None:
    client = await start(str(MODEL))
    await until(lambda: client.status.detail == "importing vLLM")
    with pytest.raises(EngineUnavailable, match="loading: importing vLLM"):
        await collect(client, request([5]))
    pid = client.pid
    assert pid is not None
    await client.close()
    assert client.status.state == "closed"
    assert not is_alive(pid)


async def test_the_engine_leaves_when_its_front_end_is_killed() -> None:
    script = (
        "import asyncio\n"
        "from server.process_engine_client import ProcessEngineClient\n"
        "async def main():\n"
        f"    client = ProcessEngineClient({str(MODEL)!r})\n"
        "    await client.start()\n"
        "    while client.status.detail != 'importing vLLM':\n"
        "        await asyncio.sleep(0.01)\n"
        "    print(client.pid, flush=True)\n"
        "    await asyncio.sleep(1000)\n"
        "asyncio.run(main())\n"
    )
    front_end = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
    assert front_end.stdout is not None
    engine_pid = int(await front_end.stdout.readline())
    assert is_alive(engine_pid)
    front_end.kill()
    await front_end.wait()
    await until(lambda: not is_alive(engine_pid))


@pytest.mark.engine
async def test_an_error_in_the_engine_fails_what_runs_and_the_engine_comes_back(engine: ProcessEngineClient) -> None:
    before = await token_ids(engine, request(prompt(30)))
    first_pid = engine.pid
    running = await begin(engine, request(prompt(30), max_tokens=MAX_CONTEXT - 100))
    with pytest.raises(EngineUnavailable, match="the engine failed while it worked on this request"):
        await collect(engine, request(prompt(5), FATAL_PRIORITY))
    with pytest.raises(EngineUnavailable, match="the engine failed while it worked on this request"):
        await running
    assert engine.status.state == "lost"
    assert engine.stats is None
    stages: dict[str, float] = {}

    def is_ready() -> bool:
        status = engine.status
        if status.state == "loading":
            stages[status.detail] = status.fraction
        return status.state == "ready"

    await until(is_ready)
    assert engine.pid != first_pid
    assert {"importing vLLM", "loading the weights", "warming up"} <= set(stages)
    assert list(stages.values()) == sorted(stages.values())  # progress never goes back
    assert await token_ids(engine, request(prompt(30))) == before


@pytest.mark.engine
async def test_an_idle_engine_uses_no_processor(engine: ProcessEngineClient) -> None:
    await token_ids(engine, request(prompt(30)))
    await until(lambda: engine.stats is not None and engine.stats.running == 0)

    def ticks() -> int:
        fields = Path(f"/proc/{engine.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before = ticks()
    await asyncio.sleep(1)
    assert ticks() - before < 20  # of about 100


@pytest.mark.engine
async def test_kill_9_is_noticed_and_the_engine_starts_again(engine: ProcessEngineClient) -> None:
    running = [await begin(engine, request(prompt(30), max_tokens=MAX_CONTEXT - 100)) for _ in range(3)]
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)
    for task in running:
        with pytest.raises(EngineUnavailable, match="died"):
            await task
    assert engine.status.state == "lost"
    await until(lambda: "SIGKILL" in engine.status.detail)
    assert "starting again" in engine.status.detail
    await until(lambda: engine.status.state == "loading" and engine.pid is not None)


@pytest.mark.engine
async def test_a_stopped_engine_is_noticed_and_its_stacks_are_told(
    engine: ProcessEngineClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As a debugger or a frozen disk would stop it."""
    before = await token_ids(engine, request(prompt(30)))
    running = await begin(engine, request(prompt(30), max_tokens=MAX_CONTEXT - 100))
    pid = engine.pid
    assert pid is not None
    monkeypatch.setattr("server.step_watch.StepWatch.limit", lambda watch: 5.0)
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(EngineUnavailable, match="the engine hung while it worked on this request"):
        await running
    assert engine.status.state == "lost"
    await until(lambda: not is_alive(pid))
    (stacks,) = (record.getMessage() for record in caplog.records if record.getMessage().startswith("Stacks"))
    assert "engine/loop.py" in stacks
    monkeypatch.undo()
    await until(lambda: engine.status.state == "ready")
    assert await token_ids(engine, request(prompt(30))) == before
