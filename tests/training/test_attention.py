"""Attention for training gives what transformers' own gives, at lengths below, at and beyond the window."""

from pathlib import Path

import pytest
import torch

from training import attention, recipe
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
