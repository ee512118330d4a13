"""Attention for training gives what transformers' own gives, at lengths below, at and beyond the window."""

from pathlib import Path

import msgspec
import pytest
import torch
from torch.nn.functional import pad

from training import attention, fused_layer, recipe
from training import model as model_files

SMOKE = recipe.load(Path("training/recipes/smoke.toml")).model  # a window of 64


@pytest.mark.parametrize("length", [1, 63, 64, 65, 128, 200, 321])
def test_outputs_and_gradients_are_those_of_the_masked_one(length: int) -> None:
    config = model_files.build_config(SMOKE, eos_token_id=2, pad_token_id=0, bos_token_id=1)
    model = model_files.build(config, seed=3)
    ids = torch.randint(0, SMOKE.vocabulary_size, (2, length), generator=torch.Generator().manual_seed(length))
    found = {}
    for name in ("eager", attention.NAME):
        model.set_attn_implementation(name)
        model.zero_grad()
        logits = model(input_ids=ids, use_cache=False).logits
        logits.square().mean().backward()
        found[name] = (logits.detach(), model.model.layers[0].self_attn.k_proj.weight.grad.clone())
    for mine, theirs in zip(found[attention.NAME], found["eager"], strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("autocast", [False, True])
def test_a_token_that_counts_twice_is_as_one_that_stands_there_twice(autocast: bool) -> None:
    """In one global layer; and a sliding one takes no notice."""
    one = msgspec.structs.replace(SMOKE, layers=4, pattern="GLLL")
    model = model_files.build(model_files.build_config(one, eos_token_id=2, pad_token_id=0, bos_token_id=1), seed=3)
    model.set_attn_implementation(attention.NAME)
    layers = model.model.layers
    ids = torch.randint(0, SMOKE.vocabulary_size, (1, 40), generator=torch.Generator().manual_seed(5))
    counts = torch.ones(1, 40)
    counts[0, 10:20] = 3.0
    repeated = torch.cat((ids[:, :10], ids[:, 10:20].repeat_interleave(3, 1), ids[:, 20:]), 1)
    last = torch.zeros(1, 40, dtype=torch.bool)
    last[0, -1] = True

    def final(given: torch.Tensor, mask: torch.Tensor, counts: torch.Tensor | None = None) -> torch.Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return fused_layer.hidden_states(model, given, mask, counts)

    model.model.layers = layers[:1]
    long = final(repeated, pad(last, (20, 0)))
    error = (final(ids, last, counts) - long).abs().max()
    assert error <= (1e-2 if autocast else 1e-5)
    assert error < (final(ids, last) - long).abs().max() / 5
    model.model.layers = layers[1:]
    torch.testing.assert_close(final(ids, last, counts), final(ids, last), atol=0.0, rtol=0.0)
