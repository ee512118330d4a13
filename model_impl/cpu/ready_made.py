"""Checkpoints that somebody has quantized, multiplied by our kernels: GPTQ, AWQ and compressed-tensors' pack-quantized.

vLLM reads such layers and has a kernel for them, which is one of a list. Ours comes before the others in that list, for
weights of 4 bits, symmetric or with zero points, and of 8 symmetric bits, in any model of vLLM's. Groups of any
multiple of 32 are kept as they are, so weights mean what the checkpoint says; activations are rounded to 8 bits. What
ours does not take (float16 activations, other groups), vLLM's own kernels do.
"""

from typing import Any

import torch
from torch import nn
from vllm.model_executor.kernels import linear
from vllm.model_executor.kernels.linear.mixed_precision.MPLinearKernel import MPLinearKernel, MPLinearLayerConfig
from vllm.model_executor.layers.quantization.utils.quant_utils import unpack_quantized_values_into_int32
from vllm.platforms import PlatformEnum
from vllm.scalar_type import scalar_types

from model_impl.cpu import READY_MADE, note
from model_impl.cpu.native import quantized_kernels
from model_impl.cpu.quantized import QuantizedProduct
from model_impl.weights import SHARED

_OFFSETS = {scalar_types.uint4b8: 8, scalar_types.uint8b128: 128}
"""Of kinds without zero points: what is taken off the stored integers."""


class TwogearWNA16LinearKernel(MPLinearKernel):
    """Products with weights of 4 or 8 bits as vLLM's quantization methods load them."""

    @classmethod
    def get_min_capability(cls) -> int:
        """None is needed: this is for CPUs."""
        return -1

    @classmethod
    def can_implement(cls, c: MPLinearLayerConfig) -> tuple[bool, str | None]:
        """Whether ours takes such a layer, else why not.

        Raises ValueError where groups do not divide it: of its scales, vLLM would read others than were meant (AWQ).
        """
        inputs = c.partition_weight_shape[0]
        if c.group_size > 0 and inputs % c.group_size != 0:
            ranks = c.full_weight_shape[0] // inputs
            each = f", which each of {ranks} ranks has of a layer" if ranks > 1 else ", which a layer has"
            raise ValueError(f"groups of {c.group_size} weights do not divide {inputs} inputs{each}")
        kinds = [scalar_types.uint4] if c.zero_points else list(_OFFSETS)
        if c.weight_type not in kinds:
            return False, f"ours takes 4 bits, and 8 without zero points, not {c.weight_type}"
        if c.group_size != -1 and c.group_size % SHARED != 0:
            return False, f"ours takes groups of multiples of {SHARED}, not of {c.group_size}"
        if c.act_type != torch.bfloat16:
            return False, f"ours computes in bfloat16, not in {c.act_type}: --dtype bfloat16"
        return True, None

    def process_weights_after_loading(self, layer: Any) -> None:
        """Lays the loaded weight out for our kernels; what was loaded is given up."""
        kind = self.config.weight_type
        stored = _inputs_first(getattr(layer, self.w_q_name))
        values = unpack_quantized_values_into_int32(stored, kind, 0).T  # (outputs, inputs)
        inputs = self.config.partition_weight_shape[0]
        values = values[:, :inputs]  # the last int32 may be filled up
        scales = _inputs_first(getattr(layer, self.w_s_name)).T.float()  # (outputs, groups)
        offset: torch.Tensor | int
        if self.config.zero_points:
            zeros = _inputs_first(getattr(layer, self.w_zp_name or ""))
            offset = unpack_quantized_values_into_int32(zeros, kind, 1).T[: len(scales)].float()
        else:
            offset = _OFFSETS[kind]
        bits: int = kind.size_bits
        if bits == 8:
            values, offset = values - _OFFSETS[kind], 0
        layer.twogear_product = QuantizedProduct.of_integers(values.to(torch.int8), scales, -offset * scales, bits)
        for name in {self.w_q_name, self.w_s_name, self.w_zp_name}:
            if name is not None and hasattr(layer, name):
                setattr(layer, name, nn.Parameter(torch.empty(0), requires_grad=False))
        note(READY_MADE, None)

    def apply_weights(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """(..., inputs) to (..., outputs)."""
        product: QuantizedProduct = layer.twogear_product
        return product(x, x, bias)


def use_kernel_for_ready_made() -> None:
    """Puts ours before vLLM's in this process. Raises KernelsUnavailableError."""
    quantized_kernels()
    kernels = linear._POSSIBLE_KERNELS[PlatformEnum.CPU]
    if TwogearWNA16LinearKernel not in kernels:
        kernels.insert(0, TwogearWNA16LinearKernel)


def _inputs_first(parameter: Any) -> torch.Tensor:
    """A parameter with its outputs last; compressed-tensors has them first."""
    data: torch.Tensor = parameter.data
    return data.t() if parameter.output_dim == 0 else data
