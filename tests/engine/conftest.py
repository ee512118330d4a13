"""One real engine process over the embedded checkpoint, shared by all tests of this folder."""

import asyncio
import json
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from engine.messages import Delta, Generate, Sampling
from server.process_engine_client import ProcessEngineClient

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models" / "twogear-tiny"
MAX_CONTEXT = 8192
PAGE = 32

_ids = count()


@pytest.fixture
def vllm_ignoring_warnings() -> Iterator[None]:
    """What torch and vLLM deprecate of each other is not for tests to fail on that import vLLM themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def fresh_environment(vllm_ignoring_warnings: None) -> Iterator[None]:
    """As every engine of a process keeps the environment that vLLM has read for the first, it is read anew."""
    from vllm import envs

    envs.disable_envs_cache()
    yield
    envs.disable_envs_cache()


def config() -> dict[str, Any]:
    """The checkpoint's config.json."""
    fields: dict[str, Any] = json.loads((MODEL / "config.json").read_text(encoding="utf-8"))
    return fields


async def until(condition: Callable[[], object], seconds: float = 250) -> None:
    """Waits for what another process does. Raises TimeoutError, before pytest's own limit ends the test."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)


def request(prompt_ids: list[int], priority: int = 0, **sampling: Any) -> Generate:
    """A greedy generation under a fresh id; it goes on to `max_tokens` unless told otherwise."""
    fields: dict[str, Any] = {"max_tokens": 16, "ignore_eos": True}
    return Generate(f"test-{next(_ids)}", prompt_ids, Sampling(**(fields | sampling)), priority)


def prompt(length: int, seed: int = 1) -> list[int]:
    """`length` token ids, different for every seed from the first on."""
    size = config()["vocab_size"]
    return [(seed * 7919 + position * (2 * seed + 13)) % (size - 50) + 50 for position in range(length)]


async def collect(engine: ProcessEngineClient, generate: Generate) -> list[Delta]:
    """All deltas of a request."""
    return [delta async for delta in engine.generate(generate)]


async def begin(engine: ProcessEngineClient, generate: Generate) -> asyncio.Task[list[Delta]]:
    """A request whose first tokens have come; the task has all deltas. Even a long one is over in a second."""
    has_begun = asyncio.Event()

    async def run() -> list[Delta]:
        deltas = []
        async for delta in engine.generate(generate):
            deltas.append(delta)
            has_begun.set()
        return deltas

    task = asyncio.create_task(run())
    await has_begun.wait()
    return task


async def token_ids(engine: ProcessEngineClient, generate: Generate) -> list[int]:
    """All tokens of a request."""
    return [token_id for delta in await collect(engine, generate) for token_id in delta.token_ids]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared_engine() -> AsyncIterator[ProcessEngineClient]:
    client = ProcessEngineClient(
        str(MODEL),
        [
            *("--max-model-len", str(MAX_CONTEXT)),
            f"--kv-cache-memory-bytes={256 << 20}",
            *("--scheduler-cls", "tests.engine.failing_scheduler.FailingScheduler"),
        ],
        environment={"PYTHONPATH": str(ROOT)},
    )
    await client.start()
    yield client
    await client.close()


@pytest_asyncio.fixture(loop_scope="session")
async def engine(shared_engine: ProcessEngineClient) -> ProcessEngineClient:
    """The shared engine, ready: also after a test that made it restart."""
    await until(lambda: shared_engine.status.state == "ready" or shared_engine.status.final)
    assert shared_engine.status.state == "ready", shared_engine.status.detail
    return shared_engine


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of the embedded checkpoint that a test may spoil; the weights are a link."""
    for name in ("config.json", "generation_config.json"):
        (tmp_path / name).write_bytes((MODEL / name).read_bytes())
    (tmp_path / "model.safetensors").symlink_to(MODEL / "model.safetensors")
    return tmp_path
