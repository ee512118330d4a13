"""A random model with pages of random keys and values, to compute one decode step natively or layer by layer."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from tests.model_impl.config_fields import Fields
from tests.model_impl.planner import engine_config, one_rank

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.forward_context import set_forward_context
    from vllm.model_executor.layers.rotary_embedding import _ROPE_DICT
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.v1.attention.backend import CommonAttentionMetadata

    from model_impl.cpu.prefill import has_byte_pages

POISON = 1e4
"""What keys and values are where no request may look."""


class Rig:
    """The model, its layers dealt into groups of pages as vLLM deals them: `groups` of those that slide, one of others.

    Each request's tokens lie on pages of its own; those wholly before the window are null blocks in its table (page 0).
    """

    def __init__(self, vllm_config: VllmConfig, page_tokens: int, groups: int = 2) -> None:
        self.config, self.page_tokens = vllm_config, page_tokens
        causal_lm: Any = initialize_model(vllm_config)
        self.model = causal_lm.model
        for name, weight in causal_lm.named_parameters():
            weight.data = torch.randn(weight.shape).mul(0.1).to(torch.bfloat16) + (1 if "norm" in name else 0)
            if "embed" in name:
                weight.data *= 10
        for module in causal_lm.modules():
            if (method := getattr(module, "quant_method", None)) is not None:
                method.process_weights_after_loading(module)
        layers = [layer.self_attn.attn for layer in self.model.layers]
        self.layers = {layer.layer_name: layer for layer in layers}
        sliding = [layer for layer in layers if layer.impl.sliding_window > 0]
        dealt = [sliding[first::groups] for first in range(groups)]
        self.groups = [group for group in (*dealt, [layer for layer in layers if layer not in sliding]) if group]

    def prepare(self, lengths: Sequence[int], pages: int | None = None) -> None:
        """Requests of so many tokens, the new one included, in tables and pages that are random."""
        self.lengths = torch.tensor(lengths, dtype=torch.int32)
        self.ids = torch.randint(self.model.embed_tokens.num_embeddings, (len(lengths),), dtype=torch.int32)
        most = -(-max(lengths) // self.page_tokens)
        count = 1 + len(lengths) * most
        self.tables = [1 + torch.randperm(count - 1, dtype=torch.int32).view(len(lengths), most) for _ in self.groups]
        self.pages = {}
        for table, group in zip(self.tables, self.groups, strict=True):
            window = max(0, group[0].impl.sliding_window)
            for layer in group:
                keys, values = (
                    torch.full((count, layer.num_kv_heads, self.page_tokens, layer.head_size), POISON) for _ in "kv"
                )
                for row, length in enumerate(lengths):
                    first = max(0, length - window) if window else 0
                    visible = torch.arange(first, length)
                    at = table[row, visible // self.page_tokens], slice(None), visible % self.page_tokens
                    for store in (keys, values):
                        content = torch.randn(len(visible), layer.num_kv_heads, layer.head_size)
                        content[:1] *= 8  # the edges of what is seen weigh
                        store[at] = content
                whole = torch.stack([keys.transpose(2, 3).flatten(2), values.flatten(2)], 2)
                shape = (count, layer.num_kv_heads, self.page_tokens, 2 * layer.head_size)
                whole = in_bytes(whole) if has_byte_pages(layer) else whole.to(torch.bfloat16)
                self.pages[layer.layer_name] = whole.view(shape)
            if window:
                for row, length in enumerate(lengths):
                    table[row, : max(0, length - window) // self.page_tokens] = 0

    def decode(self, rows: Sequence[int], *, native: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Hidden states of those rows as one batch, and each layer's pages after the step."""
        pages = {name: store.clone() for name, store in self.pages.items()}
        for name, layer in self.layers.items():
            layer.kv_cache = pages[name]
        metadata, slots = self._metadata(list(rows))
        lengths = self.lengths[list(rows)]
        decode = self.model.decode
        self.model.decode = decode if native else None
        try:
            with set_forward_context(metadata, self.config, slot_mapping=slots), torch.no_grad():
                hidden = self.model(self.ids[list(rows)], lengths.long() - 1)
        finally:
            self.model.decode = decode
        return hidden, pages

    def _metadata(self, rows: list[int]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        metadata: dict[str, Any] = {}
        slots: dict[str, torch.Tensor] = {}
        lengths = self.lengths[rows]
        last = lengths.long() - 1
        starts = torch.arange(len(rows) + 1, dtype=torch.int32)
        for table, group in zip(self.tables, self.groups, strict=True):
            page = table[rows].gather(1, (last // self.page_tokens)[:, None])[:, 0]
            slot = page.long() * self.page_tokens + last % self.page_tokens
            names = [layer.layer_name for layer in group]
            spec = group[0].get_kv_cache_spec(self.config)
            builder = group[0].attn_backend.get_builder_cls()(spec, names, self.config, torch.device("cpu"))
            common = CommonAttentionMetadata(
                query_start_loc=starts,
                query_start_loc_cpu=starts,
                seq_lens=lengths,
                num_reqs=len(rows),
                num_actual_tokens=len(rows),
                max_query_len=1,
                max_seq_len=int(lengths.max()),
                block_table_tensor=table[rows],
                slot_mapping=slot,
            )
            built = builder.build(0, common)
            metadata |= dict.fromkeys(names, built)
            slots |= dict.fromkeys(names, slot)
        return metadata, slots


def in_bytes(values: torch.Tensor) -> torch.Tensor:
    """Any numbers, as pages in 8 bits have them."""
    most = torch.finfo(torch.float8_e4m3fn).max
    return values.float().clamp(-most, most).to(torch.float8_e4m3fn).view(torch.uint8)


@contextmanager
def one_process(folder: Path) -> Iterator[None]:
    """The process groups that rigs need, for any number of them; `folder` is for a file."""
    with warnings.catch_warnings(), set_current_vllm_config(VllmConfig()), one_rank(folder / "rendezvous"):
        warnings.simplefilter("ignore")
        yield


@contextmanager
def rig(folder: Path, config: Fields, *, page_tokens: int = 32, groups: int = 2, pages: str = "auto") -> Iterator[Rig]:
    """A rig of that shape, in bfloat16, eager, within `one_process`; `folder` is for files."""
    options: dict[str, Any] = {"dtype": "bfloat16", "enforce_eager": True, "block_size": page_tokens}
    options["kv_cache_dtype"] = pages
    vllm_config = engine_config(folder / "model", config, max_model_len=4096, **options)
    before = torch.get_default_dtype()
    with warnings.catch_warnings(), set_current_vllm_config(vllm_config):
        warnings.simplefilter("ignore")
        torch.set_default_dtype(torch.bfloat16)
        try:
            with patch.dict(_ROPE_DICT, clear=True):
                made = Rig(vllm_config, page_tokens, groups)
        finally:
            torch.set_default_dtype(before)
        yield made
