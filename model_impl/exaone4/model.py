"""The EXAONE 4.0 decoder built from vLLM's layers; parallelism, LoRA and quantization come with those layers.

Differs from the usual decoder in three ways (EXAONE 4.0 report, arXiv 2507.11407, section 2.1): queries and keys are
normalised per head before the rotation, each sublayer is normalised at its output and not at its input, and global
layers carry no position (unless no layer slides). What a config means is `model_impl.exaone4.architecture`'s knowledge.

Shapes: T tokens of the batch, D hidden size, H and K query and KV heads of this tensor-parallel rank, C head size.
"""

# Calling an nn.Module gives Any, and vLLM's PPMissingLayer has no annotations.
# mypy: disable-error-code="no-any-return,no-untyped-call"

from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.distributed import get_pp_group, get_tensor_model_parallel_world_size
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.models.interfaces import SupportsLoRA, SupportsPP
from vllm.model_executor.models.utils import (
    AutoWeightsLoader,
    PPMissingLayer,
    WeightsMapper,
    extract_layer_index,
    make_empty_intermediate_tensors_factory,
    make_layers,
    maybe_prefix,
)
from vllm.sequence import IntermediateTensors

from model_impl.cpu import (
    as_loaded,
    decode_step,
    fused_operations,
    restored_names,
    use_packed_products,
    use_prefill_kernel,
)
from model_impl.exaone4.architecture import SLIDING, Architecture

if TYPE_CHECKING:
    from model_impl.cpu.fused import FusedOperations


def architecture_of(vllm_config: VllmConfig) -> Architecture:
    """The architecture of the model that an engine is about to build.

    vLLM's `disable_sliding_window` erases the window from the config and caps the context to it instead; the layers
    keep their kinds (and with them their ropes), so the context takes the window's place.
    """
    model_config = vllm_config.model_config
    fields = model_config.hf_config.to_dict()
    if model_config.disable_sliding_window:
        fields["sliding_window"] = model_config.max_model_len
    return Architecture.from_config(fields)


def fused_for(architecture: Architecture, vllm_config: VllmConfig) -> "FusedOperations | None":
    """The passes that stand for several of a layer's operations, where this model on this machine has them."""
    ranks = get_tensor_model_parallel_world_size()
    widths = (architecture.hidden_size, architecture.intermediate_size // ranks)
    return fused_operations(vllm_config, widths=widths, head_size=architecture.head_dim)


class Exaone4Attention(nn.Module):
    """Grouped-query attention with normalised queries and keys, over the window or everything so far."""

    def __init__(self, architecture: Architecture, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        ranks = get_tensor_model_parallel_world_size()
        layer = extract_layer_index(prefix)
        num_heads = architecture.num_heads // ranks
        # With more ranks than KV heads, QKVParallelLinear gives each rank a copy of one.
        num_kv_heads = max(1, architecture.num_kv_heads // ranks)
        self.head_dim = architecture.head_dim
        self.split_sizes = [num_heads * self.head_dim, num_kv_heads * self.head_dim, num_kv_heads * self.head_dim]

        self.qkv_proj = QKVParallelLinear(
            hidden_size=architecture.hidden_size,
            head_size=architecture.head_dim,
            total_num_heads=architecture.num_heads,
            total_num_kv_heads=architecture.num_kv_heads,
            bias=False,
            quant_config=vllm_config.quant_config,
            prefix=f"{prefix}.qkv_proj",
        )
        self.o_proj = RowParallelLinear(
            input_size=architecture.num_heads * architecture.head_dim,
            output_size=architecture.hidden_size,
            bias=False,
            quant_config=vllm_config.quant_config,
            prefix=f"{prefix}.o_proj",
        )
        self.fused = fused_for(architecture, vllm_config)
        self.q_norm = RMSNorm(architecture.head_dim, eps=architecture.rms_norm_eps)
        self.k_norm = RMSNorm(architecture.head_dim, eps=architecture.rms_norm_eps)
        self.rotary_emb = (
            get_rope(architecture.head_dim, architecture.max_positions, rope_parameters=dict(architecture.rope))
            if architecture.has_rope(layer)
            else None
        )
        slides = architecture.layer_types[layer] == SLIDING and not vllm_config.model_config.disable_sliding_window
        self.attn = Attention(
            num_heads,
            self.head_dim,
            scale=self.head_dim**-0.5,
            num_kv_heads=num_kv_heads,
            cache_config=vllm_config.cache_config,
            quant_config=vllm_config.quant_config,
            per_layer_sliding_window=architecture.sliding_window if slides else None,
            prefix=f"{prefix}.attn",
        )
        use_prefill_kernel(vllm_config, self.attn)

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """(T), (T, D) -> (T, D); keys and values go to the layer's pages on the way."""
        qkv, _ = self.qkv_proj(hidden_states)  # (T, (H + 2 K) C)
        if self.fused is not None:
            self.fused.norm_rope_(qkv, self.split_sizes, (self.q_norm, self.k_norm), positions, self.rotary_emb)
        q, k, v = qkv.split(self.split_sizes, dim=-1)
        if self.fused is None:
            q = self.q_norm(q.unflatten(-1, (-1, self.head_dim))).flatten(-2)  # (T, H C)
            k = self.k_norm(k.unflatten(-1, (-1, self.head_dim))).flatten(-2)  # (T, K C)
            if self.rotary_emb is not None:
                q, k = self.rotary_emb(positions, q, k)
        output, _ = self.o_proj(self.attn(q, k, v))
        return output


class Exaone4MLP(nn.Module):
    """`down(silu(gate(x)) * up(x))`."""

    def __init__(self, architecture: Architecture, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        self.gate_up_proj = MergedColumnParallelLinear(
            input_size=architecture.hidden_size,
            output_sizes=[architecture.intermediate_size] * 2,
            bias=False,
            quant_config=vllm_config.quant_config,
            prefix=f"{prefix}.gate_up_proj",
        )
        self.down_proj = RowParallelLinear(
            input_size=architecture.intermediate_size,
            output_size=architecture.hidden_size,
            bias=False,
            quant_config=vllm_config.quant_config,
            prefix=f"{prefix}.down_proj",
        )
        self.act_fn = SiluAndMul()
        self.fused = fused_for(architecture, vllm_config)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(T, D) -> (T, D)."""
        gate_up, _ = self.gate_up_proj(hidden_states)
        output, _ = self.down_proj(self.act_fn(gate_up) if self.fused is None else self.fused.silu_mul(gate_up))
        return output


class Exaone4DecoderLayer(nn.Module):
    """Attention, then MLP; each adds its normalised output to the stream."""

    def __init__(self, architecture: Architecture, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        self.self_attn = Exaone4Attention(architecture, vllm_config, f"{prefix}.self_attn")
        self.mlp = Exaone4MLP(architecture, vllm_config, f"{prefix}.mlp")
        self.post_attention_layernorm = RMSNorm(architecture.hidden_size, eps=architecture.rms_norm_eps)
        self.post_feedforward_layernorm = RMSNorm(architecture.hidden_size, eps=architecture.rms_norm_eps)
        self.fused = fused_for(architecture, vllm_config)

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """(T), (T, D) -> (T, D)."""
        attended = self.self_attn(positions, hidden_states)
        hidden_states = self._add_norm(hidden_states, attended, self.post_attention_layernorm)
        return self._add_norm(hidden_states, self.mlp(hidden_states), self.post_feedforward_layernorm)

    def _add_norm(self, residual: torch.Tensor, x: torch.Tensor, norm: RMSNorm) -> torch.Tensor:
        return residual + norm(x) if self.fused is None else self.fused.add_norm(residual, x, norm)


@support_torch_compile
class Exaone4Model(nn.Module):
    """Embedding, this pipeline rank's layers, final norm."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        architecture = architecture_of(vllm_config)
        pipeline = get_pp_group()
        # The last rank needs the embedding too where it is the output head.
        self.embed_tokens: nn.Module = (
            VocabParallelEmbedding(
                architecture.vocab_size,
                architecture.hidden_size,
                quant_config=vllm_config.quant_config,
                prefix=f"{prefix}.embed_tokens",
            )
            if pipeline.is_first_rank or (architecture.tied_embeddings and pipeline.is_last_rank)
            else PPMissingLayer()
        )
        self.start_layer, self.end_layer, self.layers = make_layers(
            architecture.num_layers,
            lambda prefix: Exaone4DecoderLayer(architecture, vllm_config, prefix),
            prefix=f"{prefix}.layers",
        )
        self.norm = (
            RMSNorm(architecture.hidden_size, eps=architecture.rms_norm_eps)
            if pipeline.is_last_rank
            else PPMissingLayer()
        )
        self.fused = fused_for(architecture, vllm_config)
        self.decode = decode_step(vllm_config, self.fused, self.embed_tokens, self.layers, self.norm)
        self.make_empty_intermediate_tensors = make_empty_intermediate_tensors_factory(
            ["hidden_states"], architecture.hidden_size
        )

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(T) -> (T, D)."""
        return self.embed_tokens(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor | IntermediateTensors:
        """Ids or embeddings (first pipeline rank), or the rank before's result, to the next rank's or (T, D)."""
        if self.decode is not None and input_ids is not None and inputs_embeds is None:
            step = self.decode(input_ids, positions)
            if step is not None:
                return step
        if not get_pp_group().is_first_rank:
            assert intermediate_tensors is not None
            hidden_states = intermediate_tensors["hidden_states"]
        elif inputs_embeds is not None:
            hidden_states = inputs_embeds
        else:
            assert input_ids is not None
            hidden_states = self.embed_input_ids(input_ids)
        for layer in islice(self.layers, self.start_layer, self.end_layer):
            hidden_states = layer(positions, hidden_states)
        if not get_pp_group().is_last_rank:
            return IntermediateTensors({"hidden_states": hidden_states})
        if self.fused is None:
            return self.norm(hidden_states)
        assert isinstance(self.norm, RMSNorm)
        return self.fused.norm(hidden_states, self.norm)


class TwogearExaone4ForCausalLM(nn.Module, SupportsLoRA, SupportsPP):
    """The model as vLLM's runner drives it: `forward` to hidden states, `compute_logits` for the rows that need it."""

    # vLLM's contract: which released modules each of ours packs (for LoRA and quantization), where their weights go ...
    packed_modules_mapping = {  # noqa: RUF012
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }
    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_stacked={
            ".q_proj": (".qkv_proj", "q"),
            ".k_proj": (".qkv_proj", "k"),
            ".v_proj": (".qkv_proj", "v"),
            ".gate_proj": (".gate_up_proj", 0),
            ".up_proj": (".gate_up_proj", 1),
        }
    )
    # ... and which modules a LoRA adapter may change beside the projections.
    embedding_modules = {"embed_tokens": "input_embeddings", "lm_head": "output_embeddings"}  # noqa: RUF012

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        self.config = vllm_config.model_config.hf_config
        architecture = architecture_of(vllm_config)
        self.model = Exaone4Model(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "model"))
        if get_pp_group().is_last_rank:
            self.lm_head: ParallelLMHead | PPMissingLayer = ParallelLMHead(
                architecture.vocab_size,
                architecture.hidden_size,
                quant_config=vllm_config.quant_config,
                prefix=maybe_prefix(prefix, "lm_head"),
            )
            if architecture.tied_embeddings:
                assert isinstance(self.model.embed_tokens, VocabParallelEmbedding)
                self.lm_head = self.lm_head.tie_weights(self.model.embed_tokens)
        else:
            self.lm_head = PPMissingLayer()
        use_packed_products(vllm_config, self, self.model.embed_tokens, self.lm_head)
        self.logits_processor = LogitsProcessor(architecture.vocab_size)
        self.make_empty_intermediate_tensors = self.model.make_empty_intermediate_tensors

    @property
    def needs_no_plan(self) -> bool:
        """Whether the last step was one native call, and another like it needs no plan of vLLM's attention either."""
        return self.model.decode is not None and self.model.decode.took_last

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(T) -> (T, D)."""
        return self.model.embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor | IntermediateTensors:
        """Hidden states after the final norm, (T, D), or what the next pipeline rank goes on with."""
        return self.model(input_ids, positions, intermediate_tensors, inputs_embeds)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """(rows, D) -> (rows, vocabulary); None on the tensor-parallel ranks that do not gather."""
        return self.logits_processor(self.lm_head, hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Takes (name, tensor) pairs under transformers' names; returns the names of the parameters it filled."""
        weights = as_loaded(self, weights, self.packed_modules_mapping)
        loaded = AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)
        return loaded | restored_names(self)
