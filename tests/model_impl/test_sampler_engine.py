"""The sampler inside of an engine: the worker puts it there, and seeds decide whoever else is in the batch."""

import random
from pathlib import Path
from typing import Any

import pytest

from tests.model_impl.config_fields import fields
from tests.model_impl.engines import LLM, SamplingParams, engine
from tests.model_impl.tiny import save_checkpoint

WORKER = "engine.vllm_internals.cpu_worker.TwogearCPUWorker"

REQUESTS: list[dict[str, Any]] = [
    {"temperature": 1.0, "seed": 1},
    {"temperature": 0.8, "top_p": 0.9, "seed": 2},
    {"temperature": 1.0, "top_k": 5, "min_p": 0.05, "seed": 3},
    {"temperature": 1.2, "top_p": 0.95, "presence_penalty": 1.0, "frequency_penalty": 0.5, "seed": 4},
    {"temperature": 0.9, "repetition_penalty": 1.3, "logit_bias": {7: 3.0}, "seed": 5},
    {"temperature": 1.0, "min_tokens": 5, "logprobs": 2, "seed": 1},
    {"temperature": 0.0},
    {"temperature": 0.0, "repetition_penalty": 1.5},
]


def generate(llm: LLM, requests: list[dict[str, Any]], prompts: list[list[int]]) -> list[list[int]]:
    params = [SamplingParams(**request, max_tokens=10, ignore_eos=True, detokenize=False) for request in requests]
    inputs: Any = [{"prompt_token_ids": prompt} for prompt in prompts]
    return [list(output.outputs[0].token_ids) for output in llm.generate(inputs, params, use_tqdm=False)]


@pytest.mark.engine
def test_requests_of_every_kind_draw_the_same_alone_as_together(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, fields())
    rng = random.Random(0)
    prompts = [[rng.randrange(101) for _ in range(20)] for _ in REQUESTS]
    with engine(tmp_path, worker_cls=WORKER, max_model_len=128) as llm:
        kinds = llm.collective_rpc(lambda worker: type(worker.model_runner.sampler).__name__)
        assert kinds == ["TwogearSampler"]
        together = generate(llm, REQUESTS, prompts)
        assert together == [
            generate(llm, [request], [prompt])[0] for request, prompt in zip(REQUESTS, prompts, strict=True)
        ]
        same_prompt = generate(llm, [{"temperature": 1.0}] * 8, [prompts[0]] * 8)
    assert len({tuple(tokens) for tokens in same_prompt}) == 8
