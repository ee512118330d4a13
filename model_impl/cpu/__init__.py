"""Faster ways through a model on CPUs, which a model class of any architecture asks for: the only door to this folder.

Each of the functions below gives a model what it can have on this machine, with this vLLM and these options, and
notes why it cannot. vLLM's own operations run where a path is off. What a path needs of vLLM's inside is listed here,
and its file is imported only when the list holds.
"""

import importlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_impl.private_names import FastPath, PrivateName, Verdict, verdict_of_names
from model_impl.weights import BITS, DEFAULT, TABLE_BITS, Format, weights_format

if TYPE_CHECKING:
    import torch
    from torch import nn

    from model_impl.cpu.decode import DecodeStep
    from model_impl.cpu.fused import FusedOperations

_ATTENTION = (
    PrivateName("vllm.model_executor.layers.attention:Attention", ("impl", "kv_cache", "layer_name")),
    PrivateName(
        "vllm.v1.attention.backends.cpu_attn:CPUAttentionMetadata",
        ("block_table", "causal", "dynamic_causal", "max_query_len", "query_start_loc", "seq_lens"),
    ),
    PrivateName("vllm.v1.attention.backends.cpu_attn:CPUAttentionMetadataBuilder._set_isa_to_layers", ("isa",)),
)
_NORM = PrivateName("vllm.model_executor.layers.layernorm:RMSNorm", ("variance_epsilon", "weight"))
_ROPE = PrivateName(
    "vllm.model_executor.layers.rotary_embedding.base:RotaryEmbeddingBase", ("cos_sin_cache", "is_neox_style")
)

PACKED = FastPath(
    "packed products",
    (
        PrivateName(
            "vllm.model_executor.layers.linear:UnquantizedLinearMethod.process_weights_after_loading",
            parameters=("self", "layer"),
        ),
        PrivateName(
            "vllm.model_executor.layers.vocab_parallel_embedding:UnquantizedEmbeddingMethod.process_weights_after_loading",
            parameters=("self", "layer"),
        ),
        PrivateName(
            "vllm.model_executor.layers.utils:cpu_unquantized_gemm",
            ("cpu_linear",),
            parameters=("layer", "x", "weight", "bias"),
        ),
    ),
)
FUSED = FastPath("fused passes", (_NORM, _ROPE))
PREFILL = FastPath(
    "prefill kernel",
    (
        *_ATTENTION,
        PrivateName("vllm.v1.attention.backends.cpu_attn:CPUAttentionBackend.get_builder_cls", parameters=()),
        PrivateName(
            "vllm.v1.attention.backends.cpu_attn:CPUAttentionBackendImpl",
            (
                *("alibi_slopes", "head_size", "kv_cache_dtype", "logits_soft_cap", "num_kv_heads"),
                *("num_queries_per_kv", "scale", "sinks", "sliding_window"),
            ),
        ),
        PrivateName(
            "vllm.v1.attention.backends.cpu_attn:CPUAttentionBackendImpl.do_kv_cache_update",
            parameters=("self", "layer", "key", "value", "kv_cache", "slot_mapping"),
        ),
        PrivateName(
            "vllm.model_executor.layers.attention.attention:set_default_quant_scales",
            ("_k_scale_float", "_v_scale_float"),
        ),
        PrivateName(
            "vllm.v1.attention.backends.cpu_attn:CPUAttentionBackendImpl.forward",
            parameters=(
                *("self", "layer", "query", "key", "value", "kv_cache", "attn_metadata", "output"),
                *("output_scale", "output_block_scale"),
            ),
        ),
    ),
)
DECODE = FastPath(
    "native decode step",
    (
        *_ATTENTION,
        *PACKED.needs,
        *FUSED.needs,
        PrivateName(
            "vllm.v1.attention.backends.cpu_attn:CPUAttentionBackendImpl", ("head_size", "scale", "sliding_window")
        ),
        PrivateName("vllm.forward_context:ForwardContext", ("attn_metadata", "slot_mapping")),
        PrivateName("vllm.forward_context:get_forward_context", parameters=()),
        PrivateName("vllm.forward_context:is_forward_context_available", parameters=()),
    ),
)
_LINEAR = "vllm.model_executor.kernels.linear"
READY_MADE = FastPath(
    "quantized checkpoints",
    (
        PrivateName(f"{_LINEAR}:_POSSIBLE_KERNELS"),
        PrivateName(
            f"{_LINEAR}.mixed_precision.MPLinearKernel:MPLinearKernel",
            ("config", "w_q_name", "w_s_name", "w_zp_name"),
        ),
        PrivateName(
            f"{_LINEAR}.mixed_precision.MPLinearKernel:MPLinearLayerConfig",
            ("act_type", "group_size", "partition_weight_shape", "weight_type", "zero_points"),
        ),
        PrivateName(
            "vllm.model_executor.layers.quantization.utils.quant_utils:unpack_quantized_values_into_int32",
            parameters=("w_q", "wtype", "packed_dim"),
        ),
        PrivateName("vllm.platforms:PlatformEnum", ("CPU",)),
        PrivateName("vllm.scalar_type:scalar_types", ("uint4", "uint4b8", "uint8b128")),
    ),
)
FAST_PATHS = (PACKED, FUSED, PREFILL, DECODE, READY_MADE)
"""In the order in which they are reported."""

_verdicts: dict[str, Verdict] = {}


def forget_verdicts() -> None:
    """Before a model is built: what was noted of an earlier one in this process is not about it."""
    _verdicts.clear()


def verdicts() -> dict[str, Verdict]:
    """By path, what became of those that this process's model has asked for."""
    return dict(_verdicts)


def note(path: FastPath, reason: str | None) -> None:
    """Notes that a path is taken (None), or why it is not. Taken somewhere in a model, it counts as taken."""
    if reason is None:
        _verdicts[path.name] = Verdict(True, "the model has asked for it, and everything fits")
    elif path.name not in _verdicts:
        _verdicts[path.name] = Verdict(False, reason)


def use_packed_products(vllm_config: Any, model: "nn.Module", embedding: "nn.Module", head: "nn.Module") -> None:
    """Has all unquantized layers of a model that was just built multiply with packed weights, in the format asked for.

    `embedding` and `head` are the input embedding and the output head, which may share their weight. Raises ValueError
    where another format than bfloat16 was asked for, and cannot be had.
    """
    weights = weights_format()
    if weights != DEFAULT:
        if (obstacle := _why_not(weights, vllm_config)) is not None:
            raise ValueError(obstacle)
        importlib.import_module("model_impl.cpu.quantized").use_quantized_products(
            model, embedding, head, weights, _kept_file(weights, vllm_config)
        )
    elif _can_take(PACKED, vllm_config):
        importlib.import_module("model_impl.cpu.packed").use_packed_products(
            model, embedding, head, share=vllm_config.lora_config is None
        )


def use_kernels_for_ready_made(vllm_config: Any) -> None:
    """Before any model is built: layers of quantized checkpoints multiply with our kernels, where those take them."""
    if vllm_config.model_config.quantization is None or not _can_take(READY_MADE, vllm_config):
        return
    native = importlib.import_module("model_impl.cpu.native")
    if os.environ.get(native.SWITCH) == "0":
        note(READY_MADE, f"{native.SWITCH} is 0")
        return
    try:
        importlib.import_module("model_impl.cpu.ready_made").use_kernel_for_ready_made()
    except native.KernelsUnavailableError as error:
        note(READY_MADE, str(error))


def as_loaded(
    model: "nn.Module", weights: "Iterable[tuple[str, torch.Tensor]]", packed: Mapping[str, list[str]]
) -> "Iterable[tuple[str, torch.Tensor]]":
    """`weights` for a model's layers to take; those that are to be quantized are so as soon as they are there.

    `packed`: by the name of a layer, those that a checkpoint has in its place.
    """
    if weights_format() == DEFAULT:
        return weights
    quantized: Iterable[tuple[str, torch.Tensor]] = importlib.import_module(
        "model_impl.cpu.quantized"
    ).quantized_as_loaded(model, weights, packed)
    return quantized


def restored_names(model: "nn.Module") -> set[str]:
    """Of parameters that `as_loaded` has left out, since their layers have what they would be made into already."""
    if weights_format() == DEFAULT:
        return set()
    names: set[str] = importlib.import_module("model_impl.cpu.quantized").restored_names(model)
    return names


def use_prefill_kernel(vllm_config: Any, attention: "nn.Module") -> None:
    """Gives vLLM's attention of one layer, just built, our kernel for steps with several new tokens per request."""
    if _can_take(PREFILL, vllm_config):
        importlib.import_module("model_impl.cpu.prefill").use_prefill_kernel(attention)


def fused_operations(vllm_config: Any, *, widths: tuple[int, ...], head_size: int) -> "FusedOperations | None":
    """One pass each for what lies between products of these row widths; None where vLLM's layers do it."""
    if not _can_take(FUSED, vllm_config):
        return None
    found: FusedOperations | None = importlib.import_module("model_impl.cpu.fused").fused_operations(
        vllm_config, widths=widths, head_size=head_size
    )
    return found


def decode_step(
    vllm_config: Any,
    fused: "FusedOperations | None",
    embedding: "nn.Module",
    layers: "nn.ModuleList",
    norm: "nn.Module",
) -> "DecodeStep | None":
    """A whole decode step in one native call, for layers of EXAONE 4.0's kind that have the fused passes; or None."""
    if not _can_take(DECODE, vllm_config):
        return None
    if fused is None:
        note(DECODE, "the fused passes are off")
        return None
    step: DecodeStep | None = importlib.import_module("model_impl.cpu.decode").decode_step(
        vllm_config, embedding, layers, norm
    )
    return step


def _kept_file(weights: Format, vllm_config: Any) -> Path | None:
    """Where the weights of a local checkpoint are kept in that format."""
    folder, parallel = Path(vllm_config.model_config.model), vllm_config.parallel_config
    if not folder.is_dir() or vllm_config.load_config.load_format not in {"auto", "hf", "safetensors"}:
        return None
    ranks = (parallel.rank, parallel.tensor_parallel_size, parallel.pipeline_parallel_size)
    what = (weights, BITS[weights], TABLE_BITS[weights], *ranks, *vllm_config.model_config.architectures)
    path: Path | None = importlib.import_module("model_impl.cpu.quantized_cache").file_for(folder, what)
    return path


def _why_not(weights: Format, vllm_config: Any) -> str | None:
    """What speaks against weights in 8 or 4 bits."""
    asked = f"--weights {weights}"
    if not _can_take(PACKED, vllm_config):
        return f"{asked} cannot be had: {verdicts()[PACKED.name].reason}"
    if (method := vllm_config.model_config.quantization) is not None:
        return f"{asked} is for checkpoints in bfloat16 or float32; this one is quantized already ({method})"
    dtype = str(vllm_config.model_config.dtype).removeprefix("torch.")
    return None if dtype == "bfloat16" else f"{asked} computes in bfloat16; leave --dtype {dtype} out"


def _can_take(path: FastPath, vllm_config: Any) -> bool:
    """Whether this is a CPU, and vLLM has what the path needs; notes the reason where not."""
    if vllm_config.device_config.device_type != "cpu":
        note(path, "it is for CPUs")
        return False
    verdict = verdict_of_names(path)
    if verdict is not None:
        _verdicts[path.name] = verdict
    return verdict is None
