"""The optimizer of supervised training: Muon for the layers' matrices, AdamW for embeddings and gains, as one.

Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/) steps along the nearest orthogonal matrix to the
momentum; what it saves in tokens is in docs/log.md. It is meant for hidden matrices only, hence the second part.
"""

from typing import Any

import torch
from torch import nn

_MATRIX_RATE = 7.0  # of the learning rate: Muon's steps are orthogonal matrices, AdamW's have entries of about one
_MOMENTUM = 0.95
_BETAS = (0.9, 0.95)


class Optimizer:
    """Steps all parameters of `model`, a causal language model of transformers; the rate is set before each step."""

    def __init__(self, model: nn.Module, *, weight_decay: float) -> None:
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            (matrices if parameter.ndim == 2 and ".layers." in name else others).append(parameter)
        self._muon = torch.optim.Muon(matrices, lr=0.0, momentum=_MOMENTUM, weight_decay=weight_decay / _MATRIX_RATE)
        self._adam = torch.optim.AdamW(others, lr=0.0, betas=_BETAS, weight_decay=weight_decay)

    def set_rate(self, rate: float) -> None:
        """AdamW's learning rate; Muon's is a fixed multiple of it."""
        for optimizer, factor in ((self._muon, _MATRIX_RATE), (self._adam, 1.0)):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor

    def step(self) -> None:
        """One step along the gradients, which are forgotten."""
        for optimizer in (self._muon, self._adam):
            optimizer.step()  # type: ignore[no-untyped-call]
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` goes on from."""
        return {"muon": self._muon.state_dict(), "adam": self._adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state of the same model's parameters."""
        self._muon.load_state_dict(state["muon"])
        self._adam.load_state_dict(state["adam"])
