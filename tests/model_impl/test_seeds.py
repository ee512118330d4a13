"""A seed decides which tokens are drawn, however the prompt is split into chunks."""

import random
from pathlib import Path
from typing import Any

import pytest

from tests.model_impl.config_fields import fields
from tests.model_impl.engines import SamplingParams, engine
from tests.model_impl.tiny import save_checkpoint

WORKER = "engine.vllm_internals.cpu_worker.TwogearCPUWorker"


def draws(folder: Path, chunk: int) -> list[list[int]]:
    """What seeds 1, 2, 1 draw after one prompt, in a batch with a request that has no seed."""
    rng = random.Random(0)
    prompt: Any = {"prompt_token_ids": [rng.randrange(101) for _ in range(300)]}
    params = [
        SamplingParams(temperature=1.0, seed=seed, max_tokens=12, ignore_eos=True, detokenize=False)
        for seed in (1, 2, 1, None)
    ]
    with engine(folder, worker_cls=WORKER, max_num_batched_tokens=chunk, max_model_len=512) as llm:
        outputs = llm.generate([prompt] * 4, params, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs[:3]]


@pytest.mark.engine
def test_a_seed_draws_the_same_whether_the_prompt_is_chunked_or_not(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, fields())
    chunked = draws(tmp_path, 64)
    assert chunked[0] == chunked[2] != chunked[1]
    assert chunked == draws(tmp_path, 2048)
