"""What vLLM's runner hands its sampler for a batch of requests, made from SamplingParams without an engine."""

import warnings
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch

from tests.model_impl.engines import SamplingParams

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # as in engines.py
    from vllm.v1.sample.logits_processor import LogitsProcessors
    from vllm.v1.sample.logits_processor.builtin import (
        LogitBiasLogitsProcessor,
        MinPLogitsProcessor,
        MinTokensLogitsProcessor,
    )
    from vllm.v1.sample.logits_processor.interface import BatchUpdate
    from vllm.v1.sample.metadata import SamplingMetadata
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p_pytorch
    from vllm.v1.sample.sampler import Sampler
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    from engine.vllm_internals.sampler import TwogearSampler

__all__ = [
    "GPUModelRunner",
    "MinPLogitsProcessor",
    "Sampler",
    "SamplingParams",
    "TwogearSampler",
    "apply_top_k_top_p_pytorch",
    "metadata",
]

CPU = torch.device("cpu")


def metadata(
    params: Sequence[SamplingParams],
    vocabulary: int,
    prompts: Sequence[Sequence[int]] | None = None,
    outputs: Sequence[Sequence[int]] | None = None,
) -> SamplingMetadata:
    """As vllm/v1/worker/gpu_input_batch.py makes it; `prompts` and `outputs` are token ids, none by default."""
    prompts = prompts or [[]] * len(params)
    put_out = [list(ids) for ids in outputs or [[]] * len(params)]
    greedy = [request.temperature == 0 for request in params]
    longest = max(map(len, prompts))
    padded = [[*ids, *[vocabulary] * (longest - len(ids))] for ids in prompts]

    def column(name: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.tensor([getattr(request, name) for request in params], dtype=dtype)

    top_k = column("top_k", torch.int32)
    penalties = {name: column(f"{name}_penalty") for name in ("frequency", "presence", "repetition")}
    return SamplingMetadata(
        temperature=None if all(greedy) else column("temperature"),
        all_greedy=all(greedy),
        all_random=not any(greedy),
        top_p=column("top_p") if any(request.top_p < 1 for request in params) else None,
        top_k=torch.where(top_k > 0, top_k, vocabulary) if bool((top_k > 0).any()) else None,
        generators={
            row: torch.Generator().manual_seed(request.seed)
            for row, request in enumerate(params)
            if request.seed is not None and not greedy[row]
        },
        max_num_logprobs=max((request.logprobs for request in params if request.logprobs is not None), default=None),
        no_penalties=all(
            request.frequency_penalty == 0 == request.presence_penalty and request.repetition_penalty == 1
            for request in params
        ),
        prompt_token_ids=torch.tensor(padded, dtype=torch.int64),
        frequency_penalties=penalties["frequency"],
        presence_penalties=penalties["presence"],
        repetition_penalties=penalties["repetition"],
        output_token_ids=put_out,
        allowed_token_ids_mask=None,
        bad_words_token_ids={},
        logitsprocs=_processors(params, prompts, put_out),
    )


def _processors(
    params: Sequence[SamplingParams], prompts: Sequence[Sequence[int]], outputs: list[list[int]]
) -> LogitsProcessors:
    config: Any = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=len(params)))
    kinds: list[Any] = [MinPLogitsProcessor, LogitBiasLogitsProcessor, MinTokensLogitsProcessor]
    processors = LogitsProcessors([kind(config, CPU, False) for kind in kinds])
    added = [(row, request, list(prompts[row]), outputs[row]) for row, request in enumerate(params)]
    for processor in processors.all:
        processor.update_state(BatchUpdate(len(params), removed=[], added=added, moved=[]))
    return processors
