"""Causal attention for training, over everything or a sliding window; the latter in time that grows with the window.

transformers calls it under the name `twogear` (`attn_implementation`). In bf16 on CPU it is `kernels/attention.cpp`,
where that runs. Elsewhere it is PyTorch's, which knows a window only as a mask over all pairs, and whose backward pass
in bf16 on CPU took a third of a step (docs/log.md).
A key of a global layer may count several times, as `counts` (B, T) tells: as if its token stood there so often, for
nothing but what a token sees depends on places there. So a text stands for a longer one (long_texts.py).
Shapes: B rows, T tokens, H query heads, K KV heads, G = H / K, C head size, N blocks of W tokens, the window.
"""

import ctypes
import math
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from training.native import kernels

NAME = "twogear"

Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def attend(  # noqa: PLR0917  (transformers' signature)
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    counts: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """(B, H, T, C), twice (B, K, T, C) -> (B, T, H, C); rows are padded on the right only, so no mask is needed."""
    del module, attention_mask
    scaling = scaling or 1 / math.sqrt(query.shape[-1])
    counts = counts if sliding_window is None else None
    size = query.shape[-1]
    if _has_kernel(query, key, value):
        tokens_first = (one.transpose(1, 2).to(torch.bfloat16) for one in (query, key, value))
        mixed: torch.Tensor = _Attention.apply(*tokens_first, scaling, sliding_window or 0, counts)  # type: ignore[no-untyped-call]
        return mixed, None
    if query.device.type == "cpu":  # the backward pass is up to three times as fast as in bf16
        query, key, value = query.float(), key.float(), value.float()
    if sliding_window is None or query.shape[2] <= sliding_window:
        query, key, value = (query, key, value) if counts is None else _counting(query, key, value, counts, scaling)
        mixed = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
        mixed = mixed[..., :size]
    else:
        mixed = _blocks(query, key, value, scaling, sliding_window)
    return mixed.transpose(1, 2), None


def forward(  # noqa: PLR0917  (what `backward` is given, too)
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    window: int,
    counts: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T, H, C), twice (B, T, K, C), bfloat16 -> (B, T, H, C), and float32 (B, H, T) that `backward` needs.

    A token sees `window` tokens, itself included, or with 0 all before it. What is given may be slices of larger rows.
    A key counts as often as `counts` (B, T) tells, or once.
    It is for where there are `kernels`, and for a C that is a multiple of 32.
    """
    query, key, value = (_in_rows(one) for one in (query, key, value))
    rows, length, heads, size = query.shape
    mixed = torch.empty(rows, length, heads, size, dtype=torch.bfloat16)
    lse = torch.empty(rows, heads, length, dtype=torch.float32)
    bias = _bias(counts, key, scale)
    _library().attention_forward(
        *_places(query, key, value),
        None if bias is None else bias.data_ptr(),
        *(mixed.data_ptr(), lse.data_ptr()),
        *(rows, length, heads, key.shape[2], size, scale, window),
    )
    return mixed, lse


def backward(  # noqa: PLR0917  (what `forward` was given and what it gave)
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mixed: torch.Tensor,
    lse: torch.Tensor,
    gradient: torch.Tensor,
    scale: float,
    window: int,
    counts: torch.Tensor | None = None,
    *,
    into: Heads | None = None,
) -> Heads:
    """The gradients of what `forward` was given, from that of `mixed`; `into` may be slices of larger rows as well."""
    query, key, value = (_in_rows(one) for one in (query, key, value))
    if into is None:
        for_query, for_key, for_value = (torch.empty(one.shape, dtype=one.dtype) for one in (query, key, value))
        into = for_query, for_key, for_value
    if any(made.dtype != torch.bfloat16 or not _is_in_rows(made) for made in into):
        raise ValueError("gradients of attention go to bfloat16 rows of heads")
    rows, length, heads, size = query.shape
    mixed, gradient = mixed.contiguous(), gradient.to(torch.bfloat16).contiguous()  # kept by name until they are read
    bias = _bias(counts, key, scale)
    _library().attention_backward(
        *_places(query, key, value),
        None if bias is None else bias.data_ptr(),
        *(mixed.data_ptr(), lse.data_ptr(), gradient.data_ptr()),
        *_places(*into),
        *(rows, length, heads, key.shape[2], size, scale, window),
    )
    return into


class _Attention(torch.autograd.Function):
    """`forward` and `backward` as one operation of autograd."""

    @staticmethod
    def forward(  # noqa: PLR0917  (autograd's signature)
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
        window: int,
        counts: torch.Tensor | None,
    ) -> torch.Tensor:
        mixed, lse = forward(query, key, value, scale, window, counts)
        ctx.save_for_backward(query, key, value, mixed, lse)
        ctx.rest = scale, window, counts
        return mixed

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return *backward(*ctx.saved_tensors, *gradients, *ctx.rest), None, None, None


def _library() -> ctypes.CDLL:
    library = kernels()
    if library is None:
        raise RuntimeError("there are no kernels of ours on this machine")
    return library


def _has_kernel(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether the kernel is there and may be used: on CPU, where autocast or the inputs ask for bfloat16."""
    if query.device.type != "cpu" or query.shape[-1] % 32 or not query.numel() or query.shape[2] != key.shape[2]:
        return False
    asked = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    given = all(one.dtype == torch.bfloat16 for one in (query, key, value))
    return (asked or given) and kernels() is not None


def _is_in_rows(heads: torch.Tensor) -> bool:
    """Whether (B, T, heads, C) is a token every so many numbers, its heads behind each other."""
    _, length, _, size = heads.shape
    row, token, head, number = heads.stride()
    return (head, number) == (size, 1) and row == length * token


def _in_rows(heads: torch.Tensor) -> torch.Tensor:
    if heads.dtype != torch.bfloat16:
        raise ValueError(f"attention is over bfloat16, not {heads.dtype}")
    return heads if _is_in_rows(heads) else heads.contiguous()


def _places(*tensors: torch.Tensor) -> tuple[int, ...]:
    """Where each begins, and how many numbers lie between its tokens."""
    return tuple(number for one in tensors for number in (one.data_ptr(), one.stride(1)))


def _bias(counts: torch.Tensor | None, key: torch.Tensor, scale: float) -> torch.Tensor | None:
    """(B, T) float32: what is added to the products of a key that counts so often, before they are scaled."""
    if counts is None:
        return None
    if counts.shape != key.shape[:2]:
        raise ValueError(f"counts are (B, T), {tuple(key.shape[:2])} here, not {tuple(counts.shape)}")
    return (counts.float().log() / scale).contiguous()


def _counting(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, counts: torch.Tensor, scale: float) -> Heads:
    """(B, heads, T, C) with eight numbers more: first the bias in a key's, one in a query's; zeros in a value's."""
    bias = _bias(counts, key.transpose(1, 2), scale)
    assert bias is not None
    one = pad(torch.ones_like(query[..., :1]), (0, 7))
    own = pad(bias[:, None, :, None].to(key.dtype).expand_as(key[..., :1]), (0, 7))
    return torch.cat((query, one), -1), torch.cat((key, own), -1), pad(value, (0, 8))


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
