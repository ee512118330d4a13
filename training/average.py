"""The mean of weights that lie near each other.

What fine-tuning makes of a checkpoint lies near it, and the weights' mean is often better than each of them (Wortsman
et al. 2022, "Model soups", arXiv:2203.05482). Of no use for weights that were trained from different starts.
"""

from collections.abc import Mapping, Sequence

import torch


def mean(weights: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The mean of state dicts of one model, taken in float32, each tensor in the dtype of the first."""
    first, *_ = weights
    return {
        name: torch.stack([one[name].float() for one in weights]).mean(0).to(tensor.dtype)
        for name, tensor in first.items()
    }
