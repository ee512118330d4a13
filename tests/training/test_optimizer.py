"""The optimizer of supervised training: what is stepped how."""

from pathlib import Path

import torch

from training import model as model_files
from training import recipe as recipes
from training.optimizer import Optimizer


def test_matrices_step_along_orthogonal_ones_and_embeddings_by_the_rate() -> None:
    size = recipes.load(Path("training/recipes/smoke.toml")).model
    model = model_files.build(model_files.build_config(size, eos_token_id=2, pad_token_id=0, bos_token_id=1), 0)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = Optimizer(model, weight_decay=0.0)
    optimizer.set_rate(1e-3)
    ids = torch.randint(0, size.vocabulary_size, (4, 64), generator=torch.Generator().manual_seed(1))
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, parameter in model.named_parameters():
        step = parameter.detach() - before[name]
        if name.endswith("proj.weight"):
            lengths = torch.linalg.svdvals(step)
            assert lengths.max() < 2.0 * lengths.median(), name  # Newton and Schulz's five rounds leave 0.7 to 1.2
        else:
            assert torch.all(step.abs() < 1.01e-3), name


def test_a_rate_of_nothing_changes_nothing() -> None:
    size = recipes.load(Path("training/recipes/smoke.toml")).model
    model = model_files.build(model_files.build_config(size, eos_token_id=2, pad_token_id=0, bos_token_id=1), 0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = Optimizer(model, weight_decay=0.1)
    model(torch.zeros(1, 8, dtype=torch.int64), labels=torch.zeros(1, 8, dtype=torch.int64)).loss.backward()
    optimizer.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
