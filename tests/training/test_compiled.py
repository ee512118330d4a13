"""The model's body as it is compiled for GPUs, all but their code, which takes minutes to make for a CPU."""

from pathlib import Path

import pytest
import torch

from training import model as model_files
from training import recipe as recipes


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # what torch.compile imports
def test_a_compiled_body_computes_the_same() -> None:
    size = recipes.load(Path("training/recipes/smoke.toml")).model
    config = model_files.build_config(size, eos_token_id=2, pad_token_id=0, bos_token_id=1)
    plain, compiled = model_files.build(config, 0), model_files.build(config, 0)
    model_files.compile_body(compiled, backend="aot_eager")
    assert list(compiled.state_dict()) == list(plain.state_dict()), "a checkpoint does not tell"
    for rows, length in ((2, 40), (3, 150)):  # within the window, and beyond it
        ids = torch.randint(0, size.vocabulary_size, (rows, length), generator=torch.Generator().manual_seed(rows))
        losses = []
        for model in (plain, compiled):
            model.zero_grad()
            loss = model(ids, labels=ids, use_cache=False).loss
            loss.backward()
            losses.append(loss.item())
        assert abs(losses[0] - losses[1]) < 1e-4
        for (name, one), other in zip(plain.named_parameters(), compiled.parameters(), strict=True):
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-3, atol=1e-4, msg=name)
