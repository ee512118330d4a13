"""The Qwen3 decoder built from vLLM's layers, for one process.

Shapes: T tokens of the batch, D hidden size, H and K query and KV heads, C head size.
"""

# Calling an nn.Module gives Any.
# mypy: disable-error-code="no-any-return,no-untyped-call"

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper

from model_impl.cpu import use_packed_products, use_prefill_kernel
from tests.model_impl.qwen3.architecture import Architecture


class Qwen3Attention(nn.Module):
    def __init__(self, shape: Architecture, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        size = self.size = shape.head_dim
        self.sizes = [shape.num_heads * size, shape.num_kv_heads * size, shape.num_kv_heads * size]
        self.qkv_proj = QKVParallelLinear(
            shape.hidden_size, size, shape.num_heads, shape.num_kv_heads, bias=False, prefix=f"{prefix}.qkv_proj"
        )
        self.o_proj = RowParallelLinear(self.sizes[0], shape.hidden_size, bias=False, prefix=f"{prefix}.o_proj")
        self.q_norm = RMSNorm(size, eps=shape.rms_norm_eps)
        self.k_norm = RMSNorm(size, eps=shape.rms_norm_eps)
        self.rotary_emb = get_rope(size, shape.max_positions, rope_parameters=shape.rope)
        self.attn = Attention(
            shape.num_heads,
            size,
            scale=size**-0.5,
            num_kv_heads=shape.num_kv_heads,
            cache_config=vllm_config.cache_config,
            prefix=f"{prefix}.attn",
        )
        use_prefill_kernel(vllm_config, self.attn)

    def forward(self, positions: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """(T), (T, D) -> (T, D)."""
        q, k, v = self.qkv_proj(x)[0].split(self.sizes, dim=-1)
        q = self.q_norm(q.unflatten(-1, (-1, self.size))).flatten(-2)  # (T, H C)
        k = self.k_norm(k.unflatten(-1, (-1, self.size))).flatten(-2)  # (T, K C)
        q, k = self.rotary_emb(positions, q, k)
        return self.o_proj(self.attn(q, k, v))[0]


class Qwen3MLP(nn.Module):
    def __init__(self, shape: Architecture, prefix: str) -> None:
        super().__init__()
        inner = shape.intermediate_size
        self.gate_up_proj = MergedColumnParallelLinear(
            shape.hidden_size, [inner] * 2, bias=False, prefix=f"{prefix}.gate_up_proj"
        )
        self.down_proj = RowParallelLinear(inner, shape.hidden_size, bias=False, prefix=f"{prefix}.down_proj")
        self.act_fn = SiluAndMul()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(T, D) -> (T, D)."""
        return self.down_proj(self.act_fn(self.gate_up_proj(x)[0]))[0]


class Qwen3Layer(nn.Module):
    def __init__(self, shape: Architecture, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)
        self.self_attn = Qwen3Attention(shape, vllm_config, f"{prefix}.self_attn")
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)
        self.mlp = Qwen3MLP(shape, f"{prefix}.mlp")

    def forward(self, positions: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """(T), (T, D) -> (T, D)."""
        x = x + self.self_attn(positions, self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Qwen3Model(nn.Module):
    def __init__(self, shape: Architecture, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        self.embed_tokens = VocabParallelEmbedding(shape.vocab_size, shape.hidden_size, prefix=f"{prefix}.embed_tokens")
        names = (f"{prefix}.layers.{number}" for number in range(shape.num_layers))
        self.layers = nn.ModuleList(Qwen3Layer(shape, vllm_config, name) for name in names)
        self.norm = RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)


class TwogearQwen3ForCausalLM(nn.Module):
    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_stacked={
            ".q_proj": (".qkv_proj", "q"),
            ".k_proj": (".qkv_proj", "k"),
            ".v_proj": (".qkv_proj", "v"),
            ".gate_proj": (".gate_up_proj", 0),
            ".up_proj": (".gate_up_proj", 1),
        }
    )

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        shape = Architecture.from_config(vllm_config.model_config.hf_config.to_dict())
        self.model = Qwen3Model(shape, vllm_config, "model")
        self.lm_head: Any = ParallelLMHead(shape.vocab_size, shape.hidden_size, prefix="lm_head")
        if shape.tied_embeddings:
            self.lm_head = self.lm_head.tie_weights(self.model.embed_tokens)
        use_packed_products(vllm_config, self, self.model.embed_tokens, self.lm_head)
        self.logits_processor = LogitsProcessor(shape.vocab_size)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(T) -> (T, D)."""
        return self.model.embed_tokens(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(T), (T) -> (T, D)."""
        x = self.embed_input_ids(input_ids) if inputs_embeds is None else inputs_embeds
        for layer in self.model.layers:
            x = layer(positions, x)
        return self.model.norm(x)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """(rows, D) -> (rows, vocabulary)."""
        return self.logits_processor(self.lm_head, hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Returns the names of the parameters it filled."""
        return AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)
