"""In a live engine, sliding layers give pages back as their window moves on, and global layers keep theirs."""

import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.model_impl.config_fields import fields
from tests.model_impl.engines import LLM, PAGE, SamplingParams, engine
from tests.model_impl.tiny import save_checkpoint

WINDOW = 40
CHUNK = 64
PROMPT = 900
GENERATED = 250


def held_pages(llm: LLM) -> Iterator[dict[str, list[int]]]:
    """Steps the engine until it is idle; after each step, by kind of manager, the pages that each group holds."""
    core: Any = llm.llm_engine.engine_core
    manager = core.engine_core.scheduler.kv_cache_manager
    while llm.llm_engine.has_unfinished_requests():
        llm.llm_engine.step()
        held: dict[str, list[int]] = {}
        for group in manager.coordinator.single_type_managers:
            for blocks in group.req_to_blocks.values():
                live = sum(not block.is_null for block in blocks)
                held.setdefault(type(group).__name__, []).append(live)
        if held:
            yield held
    assert manager.block_pool.get_num_free_blocks() == manager.block_pool.num_gpu_blocks - 1


@pytest.mark.engine
def test_only_global_layers_keep_their_pages(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, fields(sliding_window=WINDOW))
    window_pages = -(-(WINDOW - 1 + CHUNK) // PAGE) + 1
    all_pages = -(-(PROMPT + GENERATED) // PAGE)
    # Room for this one request (and the page that vLLM holds back), a third of what it takes without giving back.
    pool = all_pages + 3 * window_pages + 1
    rng = random.Random(0)
    with engine(
        tmp_path,
        max_model_len=PROMPT + GENERATED,
        max_num_batched_tokens=CHUNK,
        num_gpu_blocks_override=pool,
        disable_log_stats=True,
    ) as llm:
        prompt: Any = {"prompt_token_ids": [rng.randrange(101) for _ in range(PROMPT)]}
        sampling = SamplingParams(temperature=1.0, max_tokens=GENERATED, ignore_eos=True, detokenize=False)
        llm.llm_engine.add_request("request", prompt, sampling)
        steps = list(held_pages(llm))
    assert len(steps) >= PROMPT // CHUNK + GENERATED - 1
    for earlier, later in pairwise(steps):
        assert later["FullAttentionManager"][0] >= earlier["FullAttentionManager"][0]
    assert steps[-1]["FullAttentionManager"] == [all_pages]
    assert all(max(held["SlidingWindowManager"]) <= window_pages for held in steps)
    # While one token is computed at a time, a window lies on two or three pages.
    assert all(held["SlidingWindowManager"] in ([2] * 3, [3] * 3) for held in steps[-GENERATED // 2 :])
