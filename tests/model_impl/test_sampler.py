"""The sampler in vLLM's place: rows of every kind in one batch, seeds, penalties; what it leaves to vLLM."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from tests.model_impl.reference_sampler import keep
from tests.model_impl.sampling_batches import Sampler, SamplingParams, TwogearSampler, metadata

VOCABULARY = 9000  # more than 64 blocks of 128, so that the search by blocks is in use


def sampler(**options: Any) -> Sampler:
    made = Sampler(**options)
    TwogearSampler.take_over(made)
    return made


def random_params(rng: random.Random, **fixed: Any) -> SamplingParams:
    options: dict[str, Any] = {
        "temperature": rng.choice([0.0, 0.6, 1.0, 1.5]),
        "top_p": rng.choice([1.0, 0.95, 0.5, 0.01]),
        "top_k": rng.choice([0, 0, 1, 20, 200]),
        "min_p": rng.choice([0.0, 0.0, 0.1]),
        "frequency_penalty": rng.choice([0.0, 0.7, -1.0]),
        "presence_penalty": rng.choice([0.0, 1.3]),
        "repetition_penalty": rng.choice([1.0, 1.4]),
        "seed": rng.choice([None, 5, 6]),
    }
    return SamplingParams(**options | fixed)


def random_rows(rows: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    logits = torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed))
    logits[:, ::97] += torch.linspace(0, 14, rows)[:, None]  # from flat to peaked
    return logits.to(dtype)


def sample(logits: torch.Tensor, params: Sequence[SamplingParams], *histories: Sequence[Sequence[int]]) -> list[int]:
    tokens = sampler()(logits.clone(), metadata(params, VOCABULARY, *histories)).sampled_token_ids
    return [int(token) for token in tokens[:, 0]]


def test_penalties_are_those_of_vllm() -> None:
    rng = random.Random(1)
    rows = 12
    prompts = [[rng.randrange(VOCABULARY) for _ in range(rng.randrange(300))] for _ in range(rows)]
    outputs = [[rng.choice([-1, *range(80)]) for _ in range(rng.randrange(200))] for _ in range(rows)]
    batch = metadata([random_params(rng) for _ in range(rows)], VOCABULARY, prompts, outputs)
    logits = random_rows(rows, 1)
    ours = TwogearSampler.apply_penalties(logits.clone(), batch, outputs)
    torch.testing.assert_close(ours, Sampler.apply_penalties(logits.clone(), batch, outputs), rtol=1e-6, atol=1e-6)
    assert not torch.equal(ours, logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_row_draws_what_is_kept_after_penalties(dtype: torch.dtype) -> None:
    rng = random.Random(2)
    rows = 16
    outputs = [[rng.randrange(VOCABULARY) for _ in range(60)] for _ in range(rows)]
    logits = random_rows(rows, 2, dtype)
    params = [random_params(rng, logit_bias={3: 4.0} if row % 3 == 0 else None) for row in range(rows)]
    batch = metadata(params, VOCABULARY, outputs=outputs)
    penalized = Sampler().apply_logits_processors(logits.float().clone(), batch, predict_bonus_token=False)
    for row, token in enumerate(sample(logits, params, [[]] * rows, outputs)):
        request = params[row]
        if request.temperature == 0:
            assert token == int(penalized[row].argmax())
        else:
            reference = keep(
                penalized[row], request.temperature, request.top_k or VOCABULARY, request.top_p, request.min_p
            )
            assert reference.mass[token] > 0


def test_a_seed_draws_the_same_alone_as_in_a_batch() -> None:
    rng = random.Random(3)
    rows = 24
    logits = random_rows(rows, 3)
    params = [random_params(rng, seed=rng.choice([7, 8])) for _ in range(rows)]
    together = sample(logits, params)
    assert together == sample(logits, params)
    assert together == [sample(logits[row : row + 1], [params[row]])[0] for row in range(rows)]
    backwards = sample(logits.flip(0), params[::-1])
    assert together == backwards[::-1]


def test_another_seed_and_no_seed_draw_something_else() -> None:
    logits = random_rows(1, 4).expand(8, -1)
    sampled = SamplingParams(temperature=1.0, top_p=0.95)
    seeded = [SamplingParams(temperature=1.0, top_p=0.95, seed=seed) for seed in range(8)]
    assert len(set(sample(logits, seeded))) > 4
    assert len(set(sample(logits, [sampled] * 8))) > 4


def test_a_generator_moves_on_with_every_token() -> None:
    logits = random_rows(1, 5)
    batch = metadata([SamplingParams(temperature=1.0, seed=1)], VOCABULARY)
    draws = [int(sampler()(logits.clone(), batch).sampled_token_ids[0, 0]) for _ in range(8)]
    assert len(set(draws)) > 4


def test_what_a_grammar_or_min_tokens_forbid_is_never_drawn() -> None:
    logits = torch.full((20, VOCABULARY), -torch.inf)
    logits[:, [10, 20, 30]] = 0.0
    params = [SamplingParams(temperature=1.0, top_p=p, min_tokens=2, stop_token_ids=[20]) for p in (1.0, 0.99)] * 10
    assert set(sample(logits, params)) == {10, 30}


@pytest.mark.parametrize("mode", ["processed_logprobs", "processed_logits"])
def test_processed_logprobs_are_left_to_vllm(mode: str) -> None:
    params = [SamplingParams(temperature=0.7, top_p=0.9, logprobs=3, seed=1)] * 3
    logits = random_rows(3, 6)
    torch.compiler.set_stance("force_eager")
    try:
        ours = sampler(logprobs_mode=mode)(logits.clone(), metadata(params, VOCABULARY))
        theirs = Sampler(logprobs_mode=mode)(logits.clone(), metadata(params, VOCABULARY))  # type: ignore[arg-type]
    finally:
        torch.compiler.set_stance("default")
    assert torch.equal(ours.sampled_token_ids, theirs.sampled_token_ids)
    assert ours.logprobs_tensors is not None
    assert theirs.logprobs_tensors is not None
    assert torch.equal(ours.logprobs_tensors.logprobs, theirs.logprobs_tensors.logprobs)


@pytest.mark.parametrize("vocabulary", [300, VOCABULARY, 128 * 90])
@pytest.mark.parametrize("count", [0, 1, 20, 100])
def test_logprobs_are_those_of_vllm(vocabulary: int, count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    logprobs = (torch.randn(6, vocabulary, generator=generator) * 3).log_softmax(-1)
    logprobs[0, ::2] = -torch.inf  # as a grammar leaves them
    tokens = torch.cat((logprobs[:3].argmax(-1), torch.tensor([5, 1, 299])))
    ours = TwogearSampler.gather_logprobs(logprobs, count, tokens)
    torch.compiler.set_stance("force_eager")
    try:
        theirs = Sampler.gather_logprobs(logprobs, count, tokens)
    finally:
        torch.compiler.set_stance("default")
    for our, their in zip(ours[:3], theirs[:3], strict=True):
        assert our.dtype == their.dtype
        assert torch.equal(our, their)


def test_ranks_of_equal_logprobs_count_them_all() -> None:
    equal = torch.full((2, 500), -6.2)
    assert TwogearSampler.gather_logprobs(equal, 2, torch.tensor([0, 499]))[2].tolist() == [500, 500]


def test_uniform_numbers_are_spread_evenly() -> None:
    """What the seeds draw from equal logits: no token more often than chance allows."""
    logits = torch.zeros(512, 16)
    params = [SamplingParams(temperature=1.0, seed=seed) for seed in range(512)]
    counts = np.bincount(sampler()(logits, metadata(params, 16)).sampled_token_ids[:, 0].numpy(), minlength=16)
    assert ((counts - 32) ** 2 / 32).sum() < 15 + 5 * np.sqrt(30)
