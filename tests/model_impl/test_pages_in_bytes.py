"""A real engine with `--kv-cache-dtype fp8`: our kernels take it, twice the pages fit, and answers stay close."""

import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from model_impl.cpu import DECODE, PREFILL, forget_verdicts, verdicts
from model_impl.cpu.native import kernels
from server.settings import EMBEDDED_MODEL
from tests.model_impl.config_fields import fields
from tests.model_impl.engines import LLM, PAGE, SamplingParams, engine, generate
from tests.model_impl.questions import prompts
from tests.model_impl.tiny import save_checkpoint

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what vLLM and torch deprecate of each other
    from model_impl.cpu import prefill

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(kernels() is None, reason="no kernels of ours on this machine"),
]
ITEMS, TOKENS = 12, 48


def greedy(llm: LLM, asked: list[list[int]], tokens: int = TOKENS) -> list[tuple[list[int], int]]:
    """Of each prompt the tokens, and how many of the prompt's were not computed."""
    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    inputs: list[Any] = [{"prompt_token_ids": ids} for ids in asked]
    outputs = llm.generate(inputs, params, use_tqdm=False)
    return [(list(output.outputs[0].token_ids), output.num_cached_tokens or 0) for output in outputs]


def pages_of(llm: LLM) -> int:
    core: Any = llm.llm_engine.engine_core
    return int(core.engine_core.scheduler.kv_cache_manager.block_pool.num_gpu_blocks)


def test_answers_of_the_embedded_model() -> None:
    asked = prompts(ITEMS)
    with engine(EMBEDDED_MODEL, dtype="bfloat16") as llm:
        expected, pages = greedy(llm, asked), pages_of(llm)
    forget_verdicts()
    with engine(EMBEDDED_MODEL, dtype="bfloat16", kv_cache_dtype="fp8") as llm:
        answers = greedy(llm, asked)
        assert [greedy(llm, [ids])[0] for ids in asked[:4]] == answers[:4]  # alone as in a batch
        assert pages_of(llm) == 2 * pages
        assert all(verdicts()[path.name].on for path in (PREFILL, DECODE))
    same = sum(one[:16] == other[:16] for (one, _), (other, _) in zip(answers, expected, strict=True))
    print(f"first 16 tokens the same: {same} of {ITEMS}")
    assert same >= ITEMS // 2


def test_a_prompt_that_was_there_before_has_the_same_answer(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, fields(sliding_window=40), torch.bfloat16)
    rng = random.Random(0)
    ids = [rng.randrange(101) for _ in range(5 * PAGE + 3)]
    with engine(tmp_path, dtype="bfloat16", kv_cache_dtype="fp8_e4m3", enable_prefix_caching=True) as llm:
        ((first, computed),) = greedy(llm, [ids])
        ((again, cached),) = greedy(llm, [ids])
    assert (computed, cached) == (0, 5 * PAGE)
    assert again == first


def test_other_bytes_are_left_to_vllm(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, fields(), torch.bfloat16)
    forget_verdicts()
    with engine(tmp_path, dtype="bfloat16", kv_cache_dtype="fp8_e5m2") as llm:
        (scored,) = generate(llm, [list(range(40))], [4])
        assert scored.logprobs.isfinite().all()
        for path in (PREFILL, DECODE):
            assert not verdicts()[path.name].on
            assert verdicts()[path.name].reason == "the KV cache is in fp8_e5m2"


def test_a_layer_with_scales_is_left_to_vllm() -> None:
    layer: Any = type("Layer", (), {})()
    layer.impl = type("Impl", (), {"kv_cache_dtype": "fp8"})()
    layer._k_scale_float = layer._v_scale_float = 1.0
    assert prefill.has_byte_pages(layer)
    layer._v_scale_float = 0.5
    assert not prefill.has_byte_pages(layer)
