"""Attention of prompts on CPU with our kernel (`kernels/prefill.cpp`), over pages laid out as vLLM's operations do.

Takes the place of vLLM's operation in a layer's attention for steps in which a request has several new tokens; what it
is not written for (other types and CPUs) and steps that only decode stay with vLLM's. Pages in bfloat16 are written by
vLLM, those in 8 bits (`--kv-cache-dtype fp8`) here: to the nearest, where vLLM cuts off (`kernels/pages.h`).
"""

from typing import Any

import torch
from vllm.model_executor.layers.attention import Attention
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadata,
    CPUAttentionMetadataBuilder,
)

from model_impl.cpu import PREFILL, note
from model_impl.cpu.native import kernels, why_no_kernels

_MULTIPLE = 32
"""Of which page size and head size are multiples."""
IN_BYTES = ("fp8", "fp8_e4m3")
"""vLLM's names for pages of bytes that our kernels write and read; it reads the same."""
PAGES = ("auto", "bfloat16", *IN_BYTES)
"""Its names for pages that our kernels may be able to read."""
_LAYOUT = "vec"
"""vLLM's name for pages as the kernel reads them: keys [head size][tokens], values [tokens][head size]."""


class PrefillAttentionImpl(CPUAttentionBackendImpl):
    """vLLM's attention, with our kernel where new tokens are many."""

    def forward(  # noqa: PLR0917  (vLLM's signature)
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: CPUAttentionMetadata | None,
        output: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        """(T, H, C) queries to `output` of the same shape; keys and values are in the pages already."""
        if attn_metadata is None or not _fits(layer, query, kv_cache, attn_metadata):
            return super().forward(layer, query, key, value, kv_cache, attn_metadata, output, *args, **kwargs)
        library = kernels()
        assert library is not None
        starts, lengths, table = attn_metadata.query_start_loc, attn_metadata.seq_lens, attn_metadata.block_table
        library.attend(
            query.data_ptr(),
            query.stride(0),
            output.data_ptr(),
            output.stride(0),
            kv_cache.data_ptr(),
            kv_cache.element_size(),
            kv_cache.stride(0),
            kv_cache.stride(1),
            kv_cache.shape[2],
            table.data_ptr(),
            table.stride(0),
            starts.data_ptr(),
            lengths.data_ptr(),
            lengths.shape[0],
            self.num_queries_per_kv,
            self.num_kv_heads,
            self.head_size,
            self.scale,
            max(self.sliding_window, 0),
        )
        return output

    def do_kv_cache_update(
        self,
        layer: Any,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        slot_mapping: torch.Tensor,
    ) -> None:
        """(T, K, C) keys and values into their slots (T) of the pages."""
        if not self._writes(layer, key, value, kv_cache, slot_mapping):
            super().do_kv_cache_update(layer, key, value, kv_cache, slot_mapping)
            return
        library = kernels()
        assert library is not None
        library.keep_tokens(
            key.data_ptr(),
            key.stride(0),
            value.data_ptr(),
            value.stride(0),
            slot_mapping.data_ptr(),
            min(slot_mapping.shape[0], key.shape[0]),
            kv_cache.data_ptr(),
            kv_cache.stride(0),
            kv_cache.shape[2],
            self.num_kv_heads,
            self.head_size,
        )

    def _writes(
        self, layer: Any, key: torch.Tensor, value: torch.Tensor, kv_cache: torch.Tensor, slots: torch.Tensor
    ) -> bool:
        packed = (self.head_size, 1)
        return (
            has_byte_pages(layer)
            and _has_vec_pages(layer, kv_cache)
            and key.dtype is value.dtype is torch.bfloat16
            and key.stride()[1:] == value.stride()[1:] == packed
            and slots.dtype is torch.int64
        )


def has_byte_pages(layer: Any) -> bool:
    """Whether an attention layer's pages are bytes as our kernels have them, without scales."""
    return layer.impl.kv_cache_dtype in IN_BYTES and layer._k_scale_float == layer._v_scale_float == 1.0


class VecMetadataBuilder(CPUAttentionMetadataBuilder):
    """vLLM's plan of a step, with pages as our kernels read them where it would choose another layout (AMX)."""

    def _set_isa_to_layers(self, layer_names: list[str]) -> None:
        if self.isa == "amx":
            self.isa = _LAYOUT
        super()._set_isa_to_layers(layer_names)


class VecAttentionBackend(CPUAttentionBackend):
    """vLLM's attention with such plans."""

    @staticmethod
    def get_builder_cls() -> type[CPUAttentionMetadataBuilder]:
        """The class of the plans' builder."""
        return VecMetadataBuilder


def use_prefill_kernel(attention: Attention) -> None:
    """Gives a layer's attention, just built, the kernel where there is one for it."""
    layer: Any = attention
    impl: Any = layer.impl
    obstacle = _obstacle(impl)
    if obstacle is None:
        impl.__class__ = PrefillAttentionImpl
        if layer.attn_backend is CPUAttentionBackend and torch.cpu._is_amx_tile_supported():
            layer.attn_backend = VecAttentionBackend
    note(PREFILL, obstacle)


def _obstacle(impl: Any) -> str | None:
    """Types and pages are looked at in each step: they are not known yet."""
    if type(impl) is not CPUAttentionBackendImpl:
        return f"the attention is a {type(impl).__qualname__}"
    if impl.kv_cache_dtype not in PAGES:
        return f"the KV cache is in {impl.kv_cache_dtype}"
    if impl.head_size % _MULTIPLE or impl.alibi_slopes is not None or impl.sinks is not None or impl.logits_soft_cap:
        return f"the attention has heads of {impl.head_size}, ALiBi, sinks or a soft cap"
    return why_no_kernels() if kernels() is None else None


def _fits(layer: Any, query: torch.Tensor, kv_cache: torch.Tensor, metadata: CPUAttentionMetadata) -> bool:
    return (
        metadata.max_query_len > 1
        and metadata.causal is True
        and metadata.dynamic_causal is None
        and query.dtype is torch.bfloat16
        and (kv_cache.dtype is torch.bfloat16 or has_byte_pages(layer))
        and query.stride(1) == query.shape[2]
        and _has_vec_pages(layer, kv_cache)
    )


def _has_vec_pages(layer: Any, kv_cache: torch.Tensor) -> bool:
    """(pages, K, tokens, 2 C), each page in one piece, its inside as our kernels have it."""
    return layer.isa == _LAYOUT and kv_cache.shape[2] % _MULTIPLE == 0 and kv_cache[0].is_contiguous()
