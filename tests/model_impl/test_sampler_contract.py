"""What engine/vllm_internals/sampler.py assumes of vLLM's sampler: an upgrade that moves it fails here, by name."""

import inspect
from typing import Any

import numpy as np
import pytest
import torch

from model_impl.cpu.native import kernels
from model_impl.sampling.draw import Drawer, Limits
from tests.model_impl.reference_sampler import keep
from tests.model_impl.sampling_batches import (
    GPUModelRunner,
    MinPLogitsProcessor,
    Sampler,
    SamplingParams,
    TwogearSampler,
    apply_top_k_top_p_pytorch,
    metadata,
)

VOCABULARY = 300


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_the_methods_that_are_replaced_are_still_those_of_vllm() -> None:
    assert parameters(Sampler.sample) == ["self", "logits", "sampling_metadata", "logprobs_mode_override"]
    assert parameters(Sampler.sample) == parameters(TwogearSampler.sample)
    assert parameters(Sampler.apply_penalties) == ["logits", "sampling_metadata", "output_token_ids"]
    assert parameters(Sampler.apply_penalties) == parameters(TwogearSampler.apply_penalties)
    assert parameters(Sampler.gather_logprobs) == ["logprobs", "num_logprobs", "token_ids"]
    assert parameters(Sampler.gather_logprobs) == parameters(TwogearSampler.gather_logprobs)


def test_the_runner_still_makes_its_sampler_where_the_worker_takes_it_over() -> None:
    assert "self.sampler = Sampler(" in inspect.getsource(GPUModelRunner.__init__)


def test_forward_draws_with_our_numbers() -> None:
    """Vllm's forward goes through our draw: one uniform of the request's generator decides."""
    logits = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(0))
    sampler = Sampler()
    TwogearSampler.take_over(sampler)
    for seed in range(20):
        batch = metadata([SamplingParams(temperature=0.9, top_p=0.8, min_p=0.01, top_k=50, seed=seed)], VOCABULARY)
        generator = torch.Generator().manual_seed(seed)
        uniform = torch.rand(1, dtype=torch.float64, generator=generator).numpy()
        limits = Limits(np.array([50]), np.array([np.float32(0.8)]), np.array([np.float32(0.01)]))
        expected = Drawer(kernels()).draw(logits, np.arange(1), torch.tensor([0.9]), uniform, limits)
        assert sampler(logits.clone(), batch).sampled_token_ids.tolist() == [expected.tolist()]


@pytest.mark.parametrize("seed", range(20))
def test_the_reference_keeps_what_vllm_keeps(seed: int) -> None:
    """Vllm's own masks, in its order: temperature, min-p, top-k, top-p."""
    rng = np.random.default_rng(seed)
    temperature, top_p = float(rng.choice([0.5, 1.3])), float(rng.choice([0.1, 0.8, 0.99]))
    top_k, min_p = int(rng.choice([1, 7, 90, VOCABULARY])), float(rng.choice([0.0, 0.03]))
    logits = torch.tensor(rng.normal(size=VOCABULARY) * 2, dtype=torch.float32)
    params = SamplingParams(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p)
    scaled = logits[None] / temperature
    for processor in metadata([params], VOCABULARY).logitsprocs.argmax_invariant:
        assert type(processor) is MinPLogitsProcessor
        scaled = processor.apply(scaled)
    masked = apply_top_k_top_p_pytorch(scaled, torch.tensor([top_k]), torch.tensor([top_p]))
    row = keep(logits, temperature, top_k, top_p, min_p)
    assert row.margin > 1e-6
    np.testing.assert_array_equal(np.flatnonzero(masked[0] > -torch.inf), np.flatnonzero(row.mass))
