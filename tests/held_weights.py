"""What a checkpoint's weights are once an engine holds them in 8 or 4 bits, for references that compute otherwise."""

import warnings

import torch

from model_impl.weights import BITS, DEFAULT, TABLE_BITS, Format


def held_weights(weights: dict[str, torch.Tensor], held: Format) -> dict[str, torch.Tensor]:
    """By name: matrices are rounded as that format has them, and what is no matrix stays."""
    if held == DEFAULT:
        return weights
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what vLLM and torch deprecate of each other
        from model_impl.cpu.quantized import QuantizedProduct
    rounded = {}
    for name, weight in weights.items():
        bits = TABLE_BITS[held] if "embed" in name or "lm_head" in name else BITS[held]
        rounded[name] = (
            weight if weight.ndim == 1 else QuantizedProduct.of(weight, bits).rows(torch.arange(len(weight)))
        )
    return rounded
