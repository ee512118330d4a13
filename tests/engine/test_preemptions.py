"""Generations that lose their pages to others: which ones, and how they are counted, with the tokens of the steps."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from engine.messages import STEP_TOKENS, Generate
from server.process_engine_client import ProcessEngineClient
from tests.engine.conftest import MODEL, begin, collect, prompt, request, until

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]
CONTEXT = 512
PAGES = 4 * CONTEXT // 32 + 8  # for one prompt of that length in all four groups of layers, and a little more


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def small() -> AsyncIterator[ProcessEngineClient]:
    """An engine with few pages."""
    options = (f"--max-model-len={CONTEXT}", f"--num-gpu-blocks-override={PAGES}", "--max-num-seqs=8")
    engine = ProcessEngineClient(str(MODEL), options)
    await engine.start()
    try:
        async with asyncio.timeout(250):
            await until(lambda: engine.status.state == "ready" or engine.status.final)
        assert engine.ready is not None, engine.status
        yield engine
    finally:
        await engine.close()


async def test_preemptions_and_tokens_of_steps_are_counted(small: ProcessEngineClient) -> None:
    assert small.ready is not None
    assert small.ready.cache_config["num_gpu_blocks"] == str(PAGES)
    asked = [request(prompt(64, seed), max_tokens=400) for seed in range(1, 5)]
    await asyncio.gather(*(collect(small, one) for one in asked))
    await until(lambda: small.stats is not None and small.stats.running == 0)
    stats = small.stats
    assert stats is not None
    assert stats.preemptions > 0
    assert len(stats.step_tokens) == len(STEP_TOKENS) + 1
    assert stats.step_tokens_sum >= 4 * (64 + 400)


async def test_one_that_gets_a_lower_priority_goes_before_those_of_its_old_one(small: ProcessEngineClient) -> None:
    """Whether it runs or waits for pages by then. By itself the one that came last would end last."""
    ended: list[int] = []
    first = asyncio.Event()  # token of any; the counts come a quarter of a second later, when one may have ended

    async def run(number: int, asked: Generate) -> None:
        going_on = await begin(small, asked)
        first.set()
        await going_on
        ended.append(number)

    asked = [request(prompt(64, seed), priority=2, max_tokens=400) for seed in range(11, 15)]
    running = []
    for number, one in enumerate(asked):
        running.append(asyncio.create_task(run(number, one)))
        await asyncio.sleep(0)
    await first.wait()
    small.prioritize(asked[-1].request_id, 1)
    small.prioritize("another", 1)
    await asyncio.gather(*running)
    assert ended.index(3) <= 1
