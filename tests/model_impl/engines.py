"""vLLM engines in the test process, and the log-probabilities that they give."""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what torch and vLLM deprecate of each other is not for these tests to fail on
    from vllm import LLM, RequestOutput, SamplingParams
    from vllm.config import CompilationMode
    from vllm.lora.request import LoRARequest
    from vllm.triton_utils import dispatcher

__all__ = [
    "LLM",
    "PAGE",
    "CompilationMode",
    "LoRARequest",
    "SamplingParams",
    "Scored",
    "engine",
    "generate",
    "largest_difference",
]

# An engine's worker replaces this function in its process, which here is everybody's.
_set_num_threads = torch.set_num_threads

_register_kernels = dispatcher.register_kernels


def _register_new_kernels(overrides: Mapping[str, Callable[..., Any]]) -> None:
    """Each engine puts what CPUs have for Triton's kernels in their place, and looks through all modules of the process
    for them. It is alone there as a rule; a second one would meet numba, which n-grams import and which bears no look.
    """
    new = {name: kernel for name, kernel in overrides.items() if name not in dispatcher._registry}
    if new:
        _register_kernels(new)


# The engine's worker lives in the test process, so that tests can look into it, and leaves its CPU affinity alone,
# which every process started later would inherit.
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_USE_AOT_COMPILE": "0",
    "VLLM_NO_USAGE_STATS": "1",
}

PAGE = 32  # tokens; the smallest that vLLM's CPU attention takes


@contextmanager
def engine(folder: Path, **options: Any) -> Iterator[LLM]:
    """An eager float32 engine over a checkpoint folder, its pages few."""
    defaults: dict[str, Any] = {
        "dtype": "float32",
        "skip_tokenizer_init": True,
        "enforce_eager": True,
        "max_model_len": 2048,
        "block_size": PAGE,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 2048,
        "enable_prefix_caching": False,
        "kv_cache_memory_bytes": 64 << 20,
    }
    with (
        warnings.catch_warnings(),
        patch.dict(os.environ, _ENVIRONMENT),
        patch.object(dispatcher, "register_kernels", _register_new_kernels),
        # Eager also for the few functions that vLLM compiles even in an eager engine (ranks of log-probabilities).
        torch.compiler.set_stance("force_eager"),
    ):
        warnings.simplefilter("ignore")
        threads = torch.get_num_threads()
        _set_num_threads(1)  # the matrices are tiny
        llm = LLM(str(folder), **(defaults | options))
        try:
            yield llm
        finally:
            llm.llm_engine.engine_core.shutdown()
            torch.set_num_threads = _set_num_threads
            torch.set_num_threads(threads)


class Scored(NamedTuple):
    """A request's token ids, prompt included, and the engine's log-probabilities of the last of them."""

    ids: list[int]
    logprobs: torch.Tensor
    cached_tokens: int


def generate(
    llm: LLM,
    prompts: Sequence[Sequence[int]],
    max_tokens: Sequence[int],
    *,
    score_prompt: bool = True,
    lora: Sequence[LoRARequest | None] | None = None,
) -> list[Scored]:
    """Samples at temperature 1, all requests in one batch; scoring prompts switches reading the prefix cache off."""
    params = [
        SamplingParams(
            temperature=1.0,
            max_tokens=count,
            ignore_eos=True,
            logprobs=0,
            prompt_logprobs=0 if score_prompt else None,
            detokenize=False,
        )
        for count in max_tokens
    ]
    adapters: Any = None if lora is None else list(lora)
    inputs: list[Any] = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
    return [_scored(output) for output in llm.generate(inputs, params, use_tqdm=False, lora_request=adapters)]


def _scored(output: RequestOutput) -> Scored:
    prompt = list(output.prompt_token_ids or [])
    generated = list(output.outputs[0].token_ids)
    entries = [*(output.prompt_logprobs or [])[1:], *(output.outputs[0].logprobs or [])]
    ids = prompt + generated
    logprobs = [
        entry[token].logprob for entry, token in zip(entries, ids[-len(entries) :], strict=True) if entry is not None
    ]
    return Scored(ids, torch.tensor(logprobs), output.num_cached_tokens or 0)


def largest_difference(scored: Scored, reference: torch.Tensor) -> float:
    """Between the engine's log-probabilities and the reference's, where the engine gave some."""
    return float((scored.logprobs - reference[-len(scored.logprobs) :]).abs().max())
