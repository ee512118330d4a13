"""A decode step in one native call: one new token for each row through all layers, which make about ten calls each.

Takes the step over from the model's layers where they are what `kernels/decode.cpp` computes: packed products and fused
passes in one process, pages in the layout of vLLM's "vec" attention. Prompts, mixed batches and every other model go
through the layers. What a step needs of them is collected once, and again after weights or pages were exchanged.
"""

import ctypes
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from vllm.forward_context import ForwardContext, get_forward_context, is_forward_context_available
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl, CPUAttentionMetadata

from model_impl.cpu import DECODE, note
from model_impl.cpu.native import kernels
from model_impl.cpu.packed import PackedProduct
from model_impl.cpu.prefill import PAGES, PrefillAttentionImpl, has_byte_pages
from model_impl.cpu.quantized import QuantizedProduct

_PAGE_TOKENS = 32
"""The tokens in a page are a multiple of it."""

_PRODUCTS = (PackedProduct, QuantizedProduct)

_WEIGHTS = (
    *("qkv", "attention_out", "gate_up", "down"),
    *("query_norm", "key_norm", "turns", "attention_norm", "mlp_norm"),
)


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in (*_WEIGHTS, "pages")),
        ("page_stride", ctypes.c_int64),
        ("view", ctypes.c_int64),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        *(
            (name, ctypes.c_void_p)
            for name in ("layers", "embedding", "quantized_embedding", "packed_embedding", "norm")
        ),
        *(
            (name, ctypes.c_int64)
            for name in ("count", "hidden", "intermediate", "queries", "keys", "size", "page_tokens", "page_number")
        ),
        ("scale", ctypes.c_float),
        ("eps", ctypes.c_float),
    )


class _View(ctypes.Structure):
    _fields_ = (
        ("tables", ctypes.c_void_p),
        ("table_stride", ctypes.c_int64),
        ("slots", ctypes.c_void_p),
        ("lengths", ctypes.c_void_p),
        ("window", ctypes.c_int64),
    )


class _Bound(NamedTuple):
    """What stays from step to step. `parts`: per layer what may be exchanged, each behind the object that has it."""

    model: _Model
    views: ctypes.Array[_View]
    view_layers: list[str]
    parts: list[tuple[Any, PackedProduct | QuantizedProduct, Any, torch.Tensor]]
    kept: list[Any]

    def is_stale(self) -> bool:
        return any(
            projection.cpu_linear is not product or attention.kv_cache is not pages
            for projection, product, attention, pages in self.parts
        )


class DecodeStep:
    """All of a model, from ids to the final norm, for batches in which every request has one new token."""

    def __init__(self, embedding: nn.Module, layers: nn.ModuleList, norm: nn.Module) -> None:
        self._embedding: Any = embedding
        self._layers: list[Any] = list(layers)
        self._norm: Any = norm
        self._bound: _Bound | None = None
        self._fits = True
        self.took_last = False
        """Whether the last step was computed here, so that nothing of vLLM's attention looked at its plan."""

    def __call__(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor | None:
        """(T), (T) -> (T, D), keys and values kept in their pages; None where the step is one for the layers."""
        step = self._try(ids, positions)
        self.took_last = step is not None
        return step

    def _try(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor | None:
        if not self._fits or not is_forward_context_available():
            return None
        context = get_forward_context()
        rows = ids.shape[0]
        if not self._is_decode(context, rows):
            return None
        bound = self._bound
        if bound is None or bound.is_stale():
            self._bound = bound = self._bind(context, ids, positions)
        if bound is None:
            return None
        metadata: Any = context.attn_metadata
        slots: Any = context.slot_mapping
        for view, name in zip(bound.views, bound.view_layers, strict=True):
            of_view = metadata[name]
            view.tables = of_view.block_table.data_ptr()
            view.table_stride = of_view.block_table.stride(0)
            view.slots = slots[name].data_ptr()
            view.lengths = of_view.seq_lens.data_ptr()
        out = torch.empty((rows, bound.model.hidden), dtype=torch.bfloat16)
        library = kernels()
        assert library is not None
        library.decode_step(
            ctypes.addressof(bound.model),
            ctypes.addressof(bound.views),
            len(bound.view_layers),
            rows,
            ids.data_ptr(),
            positions.data_ptr(),
            out.data_ptr(),
        )
        return out

    def _is_decode(self, context: ForwardContext, rows: int) -> bool:
        """Whether each of so many rows is a request's one new token. All layers have the same requests."""
        if not isinstance(context.attn_metadata, dict):
            return False
        metadata: Any = context.attn_metadata.get(self._layers[0].self_attn.attn.layer_name)
        return (
            isinstance(metadata, CPUAttentionMetadata)
            and metadata.max_query_len == 1
            and metadata.causal
            and metadata.dynamic_causal is None
            and metadata.num_actual_tokens == rows == metadata.seq_lens.shape[0]
        )

    def _bind(self, context: ForwardContext, ids: torch.Tensor, positions: torch.Tensor) -> _Bound | None:
        obstacle = next(self._obstacles(context, ids, positions), None)
        note(DECODE, obstacle)
        if obstacle is not None:
            self._fits = False
            return None
        return self._collect(context)

    def _obstacles(self, context: ForwardContext, ids: torch.Tensor, positions: torch.Tensor) -> Iterator[str]:
        """What speaks against it, known only now that weights are loaded and pages are there."""
        metadata: Any = context.attn_metadata
        first = self._layers[0].self_attn
        if (ids.dtype, positions.dtype, positions.ndim) != (torch.int32, torch.int64, 1):
            yield f"ids are {ids.dtype}, positions {positions.dtype} in {positions.ndim} dimensions"
        if _packed(self._embedding) is None and (
            self._embedding.weight.dtype is not torch.bfloat16 or not self._embedding.weight.is_contiguous()
        ):
            yield "the embedding is not one of contiguous bfloat16 rows"
        for layer in self._layers:
            attention = layer.self_attn.attn
            if not all(isinstance(getattr(one, "cpu_linear", None), _PRODUCTS) for one in _projections(layer)):
                yield "a projection is not one of our packed weights"
            if not isinstance(attention.impl, CPUAttentionBackendImpl) or attention.isa != "vec":
                yield "another kind of attention"
            if not _has_vec_pages(attention) or _page_of(attention) != _page_of(first.attn):
                yield f"pages are {attention.kv_cache.dtype} {tuple(attention.kv_cache.shape)}"
            of_layer = metadata[attention.layer_name]
            types = (of_layer.block_table.dtype, of_layer.seq_lens.dtype)
            if types != (torch.int32, torch.int32):
                yield f"tables of pages and lengths are {types}"
            rope = layer.self_attn.rotary_emb
            if rope is not None and rope.cos_sin_cache.dtype is not torch.bfloat16:
                yield f"the rotation is in {rope.cos_sin_cache.dtype}"

    def _collect(self, context: ForwardContext) -> _Bound:
        metadata: Any = context.attn_metadata
        views: dict[tuple[int, int], tuple[int, str]] = {}  # layers that share tables and window share a view
        layers = (_Layer * len(self._layers))()
        for entry, layer in zip(layers, self._layers, strict=True):
            attention = layer.self_attn.attn
            name = attention.layer_name
            window = max(0, attention.impl.sliding_window)
            entry.view, _ = views.setdefault((id(metadata[name]), window), (len(views), name))
            for field, weight in zip(_WEIGHTS, _weights(layer), strict=True):
                setattr(entry, field, None if weight is None else weight.data_ptr())
            entry.pages, entry.page_stride = attention.kv_cache.data_ptr(), attention.kv_cache.stride(0)
        first = self._layers[0]
        attention = first.self_attn.attn
        table = _packed(self._embedding)
        places = {} if table is None else {type(table): table.packed.data_ptr()}
        model = _Model(
            layers=ctypes.addressof(layers),
            embedding=self._embedding.weight.data_ptr() if table is None else None,
            quantized_embedding=places.get(QuantizedProduct),
            packed_embedding=places.get(PackedProduct),
            norm=self._norm.weight.data_ptr(),
            count=len(self._layers),
            hidden=self._norm.weight.shape[0],
            intermediate=first.mlp.down_proj.cpu_linear.inputs,
            queries=attention.num_heads,
            keys=attention.num_kv_heads,
            size=attention.head_size,
            page_tokens=attention.kv_cache.shape[2],
            page_number=attention.kv_cache.element_size(),
            scale=attention.impl.scale,
            eps=self._norm.variance_epsilon,
        )
        parts = [
            (layer.mlp.down_proj, layer.mlp.down_proj.cpu_linear, layer.self_attn.attn, layer.self_attn.attn.kv_cache)
            for layer in self._layers
        ]
        of_views = (_View * len(views))(*(_View(window=window) for _, window in views))
        return _Bound(model, of_views, [name for _, name in views.values()], parts, [layers])


def _packed(embedding: Any) -> PackedProduct | QuantizedProduct | None:
    """An embedding's weights, where they are not rows: packed for a head that is tied to it, or in 8 or 4 bits."""
    product = getattr(embedding, "cpu_linear", None)
    return product if isinstance(product, _PRODUCTS) else None


def _projections(layer: Any) -> tuple[Any, Any, Any, Any]:
    return layer.self_attn.qkv_proj, layer.self_attn.o_proj, layer.mlp.gate_up_proj, layer.mlp.down_proj


def _weights(layer: Any) -> tuple[torch.Tensor | None, ...]:
    """As `_WEIGHTS` names them; no turns where the layer does not rotate."""
    attention = layer.self_attn
    turns = None if attention.rotary_emb is None else attention.rotary_emb.cos_sin_cache
    return (
        *(projection.cpu_linear.packed for projection in _projections(layer)),
        *(attention.q_norm.weight, attention.k_norm.weight, turns),
        *(layer.post_attention_layernorm.weight, layer.post_feedforward_layernorm.weight),
    )


def _page_of(attention: Any) -> tuple[torch.dtype, torch.Size]:
    return attention.kv_cache.dtype, attention.kv_cache.shape[1:]


def _has_vec_pages(attention: Any) -> bool:
    """(pages, K, tokens, 2 C), each page in one piece, of numbers that all who write them round alike."""
    pages, are_ours = attention.kv_cache, isinstance(attention.impl, PrefillAttentionImpl)
    return (
        (pages.dtype is torch.bfloat16 or (are_ours and has_byte_pages(attention)))
        and pages.ndim == 4
        and pages.shape[2] % _PAGE_TOKENS == 0
        and pages[0].is_contiguous()
    )


def decode_step(vllm_config: Any, embedding: nn.Module, layers: nn.ModuleList, norm: nn.Module) -> DecodeStep | None:
    """The native step of a model that has the fused passes, or None where the engine's options speak against it."""
    obstacle = _obstacle(vllm_config)
    if obstacle is None:
        return DecodeStep(embedding, layers, norm)
    note(DECODE, obstacle)
    return None


def _obstacle(vllm_config: Any) -> str | None:
    if vllm_config.parallel_config.world_size > 1:
        return "the model is spread over several processes"
    if vllm_config.lora_config is not None:
        return "LoRA adapters are enabled"
    if vllm_config.kv_transfer_config is not None:
        return "pages are transferred between engines"
    if vllm_config.cache_config.cache_dtype not in PAGES:
        return f"the KV cache is in {vllm_config.cache_config.cache_dtype}"
    return None
