"""Causal attention for training, over everything or a sliding window; the latter in time that grows with the window.

transformers calls it under the name `twogear` (`attn_implementation`). PyTorch knows a window only as a mask over all
pairs, and its backward pass in bf16 on CPU took a third of a step (docs/log.md).
Shapes: B rows, T tokens, H query heads, K KV heads, G = H / K, C head size, N blocks of W tokens, the window.
"""

import math
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "twogear"


def attend(  # noqa: PLR0917  (transformers' signature)
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """(B, H, T, C), twice (B, K, T, C) -> (B, T, H, C); rows are padded on the right only, so no mask is needed."""
    del module, attention_mask
    scaling = scaling or 1 / math.sqrt(query.shape[-1])
    if query.device.type == "cpu":  # the backward pass is up to three times as fast as in bf16
        query, key, value = query.float(), key.float(), value.float()
    if sliding_window is None or query.shape[2] <= sliding_window:
        mixed = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
    else:
        mixed = _blocks(query, key, value, scaling, sliding_window)
    return mixed.transpose(1, 2), None


def _blocks(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, window: int) -> torch.Tensor:
    """Blocks of W queries over their own W keys and the W before them: what a window of W can reach."""
    rows, heads, length, size = query.shape
    kv_heads = key.shape[1]
    groups = heads // kv_heads
    count = -(-length // window)
    missing = count * window - length
    query = pad(query, (0, 0, 0, missing)).view(rows, kv_heads, groups, count, window, size)
    query = query.transpose(2, 3).reshape(rows, kv_heads, count, groups * window, size)
    key, value = (_with_previous(pad(one, (0, 0, 0, missing)), window) for one in (key, value))
    position = torch.arange(window, device=query.device)
    distance = position[:, None] + window - torch.arange(2 * window, device=query.device)  # (W, 2 W)
    seen = (distance >= 0) & (distance < window)
    first = torch.arange(count, device=query.device) == 0
    seen = seen & ~(first[:, None, None] & (torch.arange(2 * window, device=query.device) < window))  # (N, W, 2 W)
    scores = (query @ key.transpose(-1, -2)).view(rows, kv_heads, count, groups, window, 2 * window)
    weights = _softmax(scores, seen[:, None], scaling).view(rows, kv_heads, count, groups * window, 2 * window)
    mixed = (weights.to(value.dtype) @ value).view(rows, kv_heads, count, groups, window, size)
    return mixed.transpose(2, 3).reshape(rows, heads, count * window, size)[:, :, :length]


def _with_previous(keys: torch.Tensor, window: int) -> torch.Tensor:
    """(B, K, N W, C) -> (B, K, N, 2 W, C): each block behind the one before it, the first behind zeros."""
    rows, heads, length, size = keys.shape
    blocks = keys.view(rows, heads, length // window, window, size)
    return torch.cat((pad(blocks, (0, 0, 0, 0, 1, -1)), blocks), dim=3)


def _softmax(scores: torch.Tensor, seen: torch.Tensor, scaling: float) -> torch.Tensor:
    return (scores.float() * scaling).masked_fill(~seen, -math.inf).softmax(-1)


def _no_mask(*_: Any, **__: Any) -> None:
    """No mask over all pairs is made: what is seen follows from positions."""


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, _no_mask)
