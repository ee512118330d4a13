"""What LoRA adapters add on a CPU: a product for each adapter in the batch, and nothing for tokens without one.

vLLM's own takes the index -1 of a token without an adapter for the last place, so that such a token gets what the
adapter there adds, and it copies an adapter's matrices for every token.
"""

from typing import Any

import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

_Groups = list[tuple[int, Any]]
"""Places of adapters, and the rows of the batch that each is for: their numbers, or a slice of all."""


class AdapterKernels(PunicaWrapperCPU):
    """Takes the place of vLLM's in a finished manager of adapters."""

    _of_tokens: _Groups
    _of_samples: _Groups

    @classmethod
    def take_over(cls, manager: Any) -> None:
        """Gives what a runner's manager of adapters computes with our class. `manager`: vLLM's worker manager."""
        for wrapper in manager._adapter_manager.punica_wrapper_mapping.values():
            wrapper.__class__ = cls

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """Called with each batch."""
        super().update_metadata(*args, **kwargs)
        self._of_tokens = _groups(self.token_lora_indices)
        self._of_samples = _groups(self.sampler_indices)

    def _apply_shrink(self, y: torch.Tensor, x: torch.Tensor, w_t_all: torch.Tensor, scale: float) -> None:
        """Into `y` (rows, rank), which is zero: `x` (rows, inputs) by the first matrices (places, 1, rank, inputs)."""
        _shrink(self._of_tokens, y.view(-1, y.shape[-1]), x, w_t_all, scale)

    def _apply_expand(  # noqa: PLR0917 - vLLM's signature
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        w_t_all: torch.Tensor,
        y_offset: int,
        y_slice_size: int,
        add_inputs: bool = True,  # noqa: ARG002 - vLLM's signature; it always adds
    ) -> None:
        """Added to columns of `y` (rows, outputs): `x` (rows, rank) by the second ones (places, 1, columns, rank)."""
        _expand(self._of_tokens, y.view(-1, y.shape[-1])[:, y_offset : y_offset + y_slice_size], x, w_t_all)

    def add_lora_embedding(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        add_inputs: bool = True,  # noqa: ARG002 - vLLM's signature
        **_kwargs: Any,
    ) -> None:
        """`x` (rows, rank) has been looked up already."""
        _expand(self._of_tokens, y, x, lora_b_stacked)

    def add_lora_logits(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        **_kwargs: Any,
    ) -> None:
        """For the rows that are sampled."""
        x = x.view(-1, x.shape[-1])
        shrunk = torch.zeros((len(x), lora_b_stacked.size(-1)), dtype=torch.float32)
        _shrink(self._of_samples, shrunk, x, lora_a_stacked, scale)
        _expand(self._of_samples, y.view(-1, y.shape[-1]), shrunk, lora_b_stacked)


def _groups(indices: torch.Tensor) -> _Groups:
    """By place; without those that have none."""
    places = indices.unique().tolist()
    if len(places) == 1:
        return [(place, slice(None)) for place in places if place >= 0]
    return [(place, (indices == place).nonzero().flatten()) for place in places if place >= 0]


def _shrink(groups: _Groups, y: torch.Tensor, x: torch.Tensor, matrices: torch.Tensor, scale: float) -> None:
    for place, rows in groups:
        y[rows] = scale * (x[rows].to(y.dtype) @ matrices[place].flatten(0, -2).to(y.dtype).T)


def _expand(groups: _Groups, y: torch.Tensor, x: torch.Tensor, matrices: torch.Tensor) -> None:
    """An output may be padded in the one and not in the other."""
    for place, rows in groups:
        added = x[rows].to(y.dtype) @ matrices[place].flatten(0, -2).to(y.dtype).T
        columns = min(added.shape[1], y.shape[1])
        y[rows, :columns] += added[:, :columns]
