"""The optimizer of supervised training: Muon for the layers' matrices, AdamW for embeddings and gains, as one.

Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/) steps along the nearest orthogonal matrix to the
momentum; what it saves in tokens is in docs/log.md. It is meant for hidden matrices only, hence the second part.
"""

from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from training.ranks import spread

_MATRIX_RATE = 7.0  # of the learning rate: Muon's steps are orthogonal matrices, AdamW's have entries of about one
_MOMENTUM = 0.95
_BETAS = (0.9, 0.95)


def is_matrix(name: str, dimensions: int) -> bool:
    """Whether a parameter is one of those that Muon steps."""
    return dimensions == 2 and ".layers." in name


class Optimizer:
    """Steps all parameters of `model`, a causal language model of transformers; the rate is set before each step."""

    def __init__(self, model: nn.Module, *, weight_decay: float) -> None:
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            (matrices if is_matrix(name, parameter.ndim) else others).append(parameter)
        muon = _ShardedMuon if isinstance(matrices[0], DTensor) else torch.optim.Muon
        self._muon = muon(matrices, lr=0.0, momentum=_MOMENTUM, weight_decay=weight_decay / _MATRIX_RATE)
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
        """Goes on from a state of the same model's parameters, whole ones, whether these are sharded or not."""
        for optimizer, name in ((self._muon, "muon"), (self._adam, "adam")):
            parameters = optimizer.param_groups[0]["params"]
            kept = {
                number: {key: spread(parameters[number], one) if one.ndim else one for key, one in of.items()}
                for number, of in state[name]["state"].items()
            }
            optimizer.load_state_dict({**state[name], "state": kept})


class _ShardedMuon(torch.optim.Muon):
    """Muon over DTensors: momentum stays sharded, and each matrix is made orthogonal by one process, as a whole.

    So every process has its part of that work, and a step is the one of a single process. Between, it holds the
    matrices that are its own, whole: as much as its part of the weights.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Parameters' gradients are used up by it."""
        assert closure is None
        rank, size = distributed.get_rank(), distributed.get_world_size()
        (group,) = self.param_groups
        directions = []
        for number, parameter in enumerate(group["params"]):
            self._add_momentum(parameter, group["momentum"])
            whole = parameter.grad.full_tensor()
            directions.append(_orthogonal(whole) if number % size == rank else None)
        for number, (parameter, own) in enumerate(zip(group["params"], directions, strict=True)):
            direction = torch.empty(parameter.shape, device=parameter.device) if own is None else own
            distributed.broadcast(direction, src=number % size)
            part = distribute_tensor(direction, parameter.device_mesh, parameter.placements, src_data_rank=None)
            parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(part, alpha=group["lr"])

    def _add_momentum(self, parameter: nn.Parameter, momentum: float) -> None:
        """Nesterov's, into the gradient."""
        gradient, state = parameter.grad, self.state[parameter]
        assert isinstance(gradient, DTensor)
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        own, buffer = gradient.to_local(), state["momentum_buffer"].to_local()
        buffer.lerp_(own, 1 - momentum)
        own.lerp_(buffer, momentum)


def _orthogonal(gradient: torch.Tensor) -> torch.Tensor:
    """Where torch's Muon would step from zero along it, at a rate of one."""
    step = nn.Parameter(torch.zeros_like(gradient))
    step.grad = gradient
    torch.optim.Muon([step], lr=1.0, momentum=0.0, nesterov=False, weight_decay=0.0).step()
    return step.detach()
