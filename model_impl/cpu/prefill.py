"""Attention of prompts on CPU with our kernel (`kernels/prefill.cpp`), over the pages that vLLM's operations write.

Takes the place of vLLM's operation in a layer's attention for steps in which a request has several new tokens; what it
is not written for (other types, quantized pages, other CPUs) and steps that only decode stay with vLLM's.
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
    if impl.head_size % _MULTIPLE or impl.alibi_slopes is not None or impl.sinks is not None or impl.logits_soft_cap:
        return f"the attention has heads of {impl.head_size}, ALiBi, sinks or a soft cap"
    return why_no_kernels() if kernels() is None else None


def _fits(layer: Any, query: torch.Tensor, kv_cache: torch.Tensor, metadata: CPUAttentionMetadata) -> bool:
    return (
        metadata.max_query_len > 1
        and metadata.causal is True
        and metadata.dynamic_causal is None
        and layer.isa == _LAYOUT
        and query.dtype is torch.bfloat16
        and kv_cache.dtype is torch.bfloat16
        and kv_cache.shape[2] % _MULTIPLE == 0
        and query.stride(1) == query.shape[2]
        and kv_cache[0].is_contiguous()
    )
