"""The mean of weights: exact in float32, in the dtype of the first."""

import torch

from training.average import mean


def test_the_mean_is_taken_in_float32() -> None:
    parts = [{"a": torch.full((2,), value, dtype=torch.bfloat16)} for value in (1.0, 1.0078125, 1.0078125)]
    found = mean(parts)["a"]
    assert found.dtype == torch.bfloat16
    exact = torch.tensor([(1.0 + 2 * 1.0078125) / 3] * 2).to(torch.bfloat16)
    assert torch.equal(found, exact)


def test_every_tensor_is_averaged() -> None:
    one, other = {"a": torch.zeros(2), "b": torch.ones(1)}, {"a": torch.ones(2), "b": torch.ones(1)}
    assert {name: tensor.tolist() for name, tensor in mean([one, other]).items()} == {"a": [0.5, 0.5], "b": [1.0]}
