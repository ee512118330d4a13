"""What the engine counts for the metrics: generations that lose their pages to others, and the tokens of its steps."""

import asyncio

import pytest

from engine.messages import STEP_TOKENS
from server.engine_client import ProcessEngineClient
from tests.engine.conftest import MODEL, collect, prompt, request, until

pytestmark = pytest.mark.engine
CONTEXT = 512


async def test_preemptions_and_tokens_of_steps_are_counted() -> None:
    pages = 4 * CONTEXT // 32 + 8  # for one prompt of that length in all four groups of layers, and a little more
    options = (f"--max-model-len={CONTEXT}", f"--num-gpu-blocks-override={pages}", "--max-num-seqs=8")
    engine = ProcessEngineClient(str(MODEL), options)
    await engine.start()
    try:
        async with asyncio.timeout(250):
            await until(lambda: engine.status.state == "ready" or engine.status.final)
        assert engine.ready is not None, engine.status
        assert engine.ready.cache_config["num_gpu_blocks"] == str(pages)
        asked = [request(prompt(64, seed), max_tokens=400) for seed in range(1, 5)]
        await asyncio.gather(*(collect(engine, one) for one in asked))
        await until(lambda: engine.stats is not None and engine.stats.running == 0)
        stats = engine.stats
        assert stats is not None
        assert stats.preemptions > 0
        assert len(stats.step_tokens) == len(STEP_TOKENS) + 1
        assert stats.step_tokens_sum >= 4 * (64 + 400)
    finally:
        await engine.close()
