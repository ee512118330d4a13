"""What lies between a layer's matrix products, in one pass each: in eager mode every operation of torch costs its call.

Results are those of vLLM's layers (RMSNorm, RotaryEmbedding, SiluAndMul) in bfloat16, rounded where they round. A model
that is compiled has no use for it: torch's inductor fuses by itself. The passes are in `kernels/elementwise.cpp`.
"""

from collections.abc import Iterator
from ctypes import CDLL
from typing import Any

import torch

from model_impl.cpu import FUSED, note
from model_impl.cpu.native import kernels, why_no_kernels

_LANES = 16
"""Values that the passes take at a time: widths are multiples of it."""


class FusedOperations:
    """The passes over bfloat16 tensors of (T, ...) on CPU, rows of any stride unless said otherwise.

    Norms are vLLM's RMSNorm, ropes its RotaryEmbeddingBase: their weights are read, they are not called.
    """

    def __init__(self, library: CDLL) -> None:
        self._library = library

    def norm(self, x: torch.Tensor, norm: Any) -> torch.Tensor:
        """(T, D) -> (T, D): `norm(x)`."""
        return self._add_norm(None, x, norm)

    def add_norm(self, residual: torch.Tensor, x: torch.Tensor, norm: Any) -> torch.Tensor:
        """(T, D), (T, D) -> (T, D): `residual + norm(x)`."""
        return self._add_norm(residual.contiguous(), x, norm)

    def norm_rope_(
        self,
        qkv: torch.Tensor,
        split_sizes: list[int],
        norms: tuple[Any, Any],
        positions: torch.Tensor,
        rope: Any | None,
    ) -> None:
        """Normalises each query and key head in (T, (H + 2 K) C), then rotates it by its position (T); in place."""
        query_norm, key_norm = norms
        query_weight, key_weight = query_norm.weight, key_norm.weight
        size = query_weight.shape[0]
        assert qkv.stride(1) == 1
        turns = None
        if rope is not None:
            turns = rope.cos_sin_cache
            assert turns.dtype is torch.bfloat16
            assert positions.dtype is torch.int64
        self._library.norm_rope(
            qkv.data_ptr(),
            qkv.shape[0],
            qkv.stride(0),
            split_sizes[0] // size,
            split_sizes[1] // size,
            size,
            query_weight.data_ptr(),
            key_weight.data_ptr(),
            query_norm.variance_epsilon,
            positions.data_ptr(),
            None if turns is None else turns.data_ptr(),
        )

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """(T, 2 F) -> (T, F): `silu(gate) * up`."""
        gate_up = gate_up.contiguous()
        rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        y = gate_up.new_empty(rows, width)
        self._library.silu_mul(gate_up.data_ptr(), rows, width, y.data_ptr())
        return y

    def _add_norm(self, residual: torch.Tensor | None, x: torch.Tensor, norm: Any) -> torch.Tensor:
        x = x.contiguous()
        y = torch.empty_like(x)
        self._library.add_norm(
            None if residual is None else residual.data_ptr(),
            x.data_ptr(),
            norm.weight.data_ptr(),
            norm.variance_epsilon,
            *x.shape,
            y.data_ptr(),
        )
        return y


def fused_operations(vllm_config: Any, *, widths: tuple[int, ...], head_size: int) -> FusedOperations | None:
    """The passes, or None where a model of these row widths is not one for them: compiled, or not in bfloat16."""
    obstacle = next(_obstacles(vllm_config, widths, head_size), None)
    note(FUSED, obstacle)
    library = kernels() if obstacle is None else None
    return None if library is None else FusedOperations(library)


def _obstacles(vllm_config: Any, widths: tuple[int, ...], head_size: int) -> Iterator[str]:
    if vllm_config.model_config.dtype is not torch.bfloat16:
        yield f"the model computes in {vllm_config.model_config.dtype}"
    if vllm_config.compilation_config.mode.name != "NONE":
        yield "the model is compiled"
    if head_size % (2 * _LANES) or any(width % _LANES for width in widths):
        yield f"head size {head_size} or row widths {widths} are not multiples of {2 * _LANES} and {_LANES}"
    if kernels() is None:
        yield why_no_kernels()
