"""GGUF files of small random models, as llama.cpp writes them, and transformers' model of the same weights."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize

from tests.chat_templates.foreign import QWEN
from tests.chat_templates.small_tokenizers import byte_level_with

Array = np.ndarray[Any, Any]

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TAGS = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
SIZES = {
    "vocab_size": 384,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 4096,
    "initializer_range": 0.05,
    "rms_norm_eps": 1e-5,
}
_CLASSES = {
    "llama": ("LlamaConfig", "LlamaForCausalLM"),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM"),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM"),
    "exaone4": ("Exaone4Config", "Exaone4ForCausalLM"),
}
_NAMES = [
    *(("model.embed_tokens.", "token_embd."), ("model.norm.", "output_norm."), ("lm_head.", "output.")),
    *(("model.layers.", "blk."), ("self_attn.q_proj", "attn_q"), ("self_attn.k_proj", "attn_k")),
    *(("self_attn.v_proj", "attn_v"), ("self_attn.o_proj", "attn_output"), ("self_attn.q_norm", "attn_q_norm")),
    *(("self_attn.k_norm", "attn_k_norm"), ("mlp.gate_proj", "ffn_gate"), ("mlp.up_proj", "ffn_up")),
    *(("mlp.down_proj", "ffn_down"), ("input_layernorm", "attn_norm")),
]
_NORMS = {"post_attention_layernorm": "ffn_norm"}
_NORMS_BEHIND = {"post_attention_layernorm": "post_attention_norm", "post_feedforward_layernorm": "post_ffw_norm"}


def write(
    path: Path,
    architecture: str,
    kind: Callable[[str], str] | str,
    config: Mapping[str, Any] | None = None,
    fields: Callable[[GGUFWriter], None] = lambda _writer: None,
) -> Any:
    """Writes the file and returns transformers' model, in float32. `kind`: of a matrix, by its name in the file."""
    model = random_model(architecture, config or {})
    writer = GGUFWriter(path, architecture)
    _write_fields(writer, model.config)
    _write_tokenizer(writer)
    fields(writer)
    rng = np.random.default_rng(0)
    state = dict(model.state_dict())
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    for name, weight in state.items():
        theirs = _name(name, architecture)
        chosen = "F32" if weight.ndim == 1 else kind if isinstance(kind, str) else kind(theirs)
        heads = _heads(architecture, theirs, model.config)
        data, values = _stored(_interleave(weight.numpy(), heads), chosen, rng)
        writer.add_tensor(theirs, data, raw_dtype=GGMLQuantizationType[chosen])
        weight.copy_(torch.from_numpy(_separate(values, heads)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def random_model(architecture: str, config: Mapping[str, Any]) -> Any:
    """Of transformers, with norms and biases that would be missed."""
    torch.manual_seed(0)
    config_class, model_class = _CLASSES[architecture]
    made = getattr(transformers, config_class)(**{**SIZES, "tie_word_embeddings": False, **config})
    model = getattr(transformers, model_class)(made).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                weight.uniform_(-0.5, 0.5)
    return model


def q4_k_m(name: str) -> str:
    """As llama.cpp's Q4_K_M: half of the values and down projections, and the head, in 6 bits."""
    better = name == "output.weight" or (name.startswith("blk.0.") and ("attn_v" in name or "ffn_down" in name))
    return "Q6_K" if better else "Q4_K"


def _name(name: str, architecture: str) -> str:
    for ours, theirs in [*_NAMES, *(_NORMS_BEHIND if architecture == "exaone4" else _NORMS).items()]:
        name = name.replace(ours, theirs)
    return name


def _write_fields(writer: GGUFWriter, config: Any) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim if hasattr(config, "head_dim") else 64)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if config.model_type == "exaone4" and config.sliding_window:
        writer.add_sliding_window(config.sliding_window)
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])


def _write_tokenizer(writer: GGUFWriter) -> None:
    tokens = vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL else 4 if token in TAGS else 1 for token in tokens])
    writer.add_token_merges(merges())
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_pad_token_id(tokens.index("<|endoftext|>"))
    writer.add_chat_template(QWEN)


def vocabulary() -> list[str]:
    """By id, filled up to the size of the embedding as converters do."""
    known = byte_level_with([*SPECIAL, *TAGS]).get_vocab()
    tokens = sorted(known, key=lambda token: known[token])
    return tokens + [f"[PAD{i}]" for i in range(len(tokens), SIZES["vocab_size"])]  # type: ignore[call-overload]


def merges() -> list[str]:
    """Pairs in their order."""
    import json

    return [" ".join(pair) for pair in json.loads(byte_level_with([*SPECIAL, *TAGS]).to_str())["model"]["merges"]]


def _heads(architecture: str, name: str, config: Any) -> int:
    if architecture != "llama" or not name.endswith(("attn_q.weight", "attn_k.weight")):
        return 0
    return int(config.num_attention_heads if "attn_q" in name else config.num_key_value_heads)


def _interleave(weight: Array, heads: int) -> Array:
    """llama.cpp's `permute`."""
    if not heads:
        return weight
    parts = weight.reshape(heads, 2, len(weight) // heads // 2, -1)
    return np.ascontiguousarray(parts.swapaxes(1, 2).reshape(weight.shape))


def _separate(weight: Array, heads: int) -> Array:
    if not heads:
        return weight
    parts = weight.reshape(heads, len(weight) // heads // 2, 2, -1)
    return np.ascontiguousarray(parts.swapaxes(1, 2).reshape(weight.shape))


def _stored(weight: Array, kind: str, rng: np.random.Generator) -> tuple[Array, Array]:
    """What the file has of a weight, and what that means."""
    if kind in _K_BLOCKS:  # the package does not quantize to these, so that any blocks will do
        data = _random_blocks(weight.shape, kind, rng)
    else:
        data = quantize(weight, GGMLQuantizationType[kind])
    return data, dequantize(data, GGMLQuantizationType[kind]).astype(np.float32)


_K_BLOCKS: Mapping[str, tuple[int, Sequence[tuple[int, float]]]] = {
    "Q4_K": (144, [(0, 3e-4), (2, 2.2e-3)]),
    "Q5_K": (176, [(0, 1.5e-4), (2, 2.2e-3)]),
    "Q6_K": (210, [(208, 3e-5)]),
    "Q3_K": (110, [(108, 1e-4)]),
}
"""Bytes of 256 weights, and where in them a float16 scales them, with what makes weights about as large as others."""


def _random_blocks(shape: tuple[int, ...], kind: str, rng: np.random.Generator) -> Array:
    size, scales = _K_BLOCKS[kind]
    blocks = rng.integers(0, 256, (shape[0] * shape[1] // 256, size), np.uint8)
    for at, scale in scales:
        halves = (scale * rng.uniform(0.5, 1, len(blocks))).astype(np.float16)
        blocks[:, at : at + 2] = halves[:, None].view(np.uint8)
    return blocks.reshape(shape[0], -1)
