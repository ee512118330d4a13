"""A GGUF file's fields as transformers' config.json has them, and its tensors under transformers' names."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from model_impl.gguf import GgufError
from model_impl.gguf.blocks import check
from model_impl.gguf.container import Gguf, Tensor


class _Architecture(NamedTuple):
    """`tensors`: of a layer, transformers' names by llama.cpp's. `biases`: of queries, keys and values."""

    model_class: str
    tensors: Mapping[str, str]
    biases: bool = False


_LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_BEFORE = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_BEHIND = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
_HEADS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_AROUND = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_ROPE_FACTORS = "rope_freqs.weight"

ARCHITECTURES = {
    "llama": _Architecture("LlamaForCausalLM", _LAYER | _BEFORE),
    "qwen2": _Architecture("Qwen2ForCausalLM", _LAYER | _BEFORE, biases=True),
    "qwen3": _Architecture("Qwen3ForCausalLM", _LAYER | _BEFORE | _HEADS),
    "exaone4": _Architecture("Exaone4ForCausalLM", _LAYER | _BEHIND | _HEADS),
}
"""By llama.cpp's name, which is transformers' model_type as well."""
_TURN_ENDS = ("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "[|endofturn|]")
"""Control tokens that end an answer by their spelling, as in llama.cpp, whatever a file says of them."""
_CONTROL = 3


class Placed(NamedTuple):
    """A tensor under transformers' name. `heads`: so many have their rows interleaved, as llama.cpp's rope wants it."""

    name: str
    tensor: Tensor
    heads: int = 0


def config_of(file: Gguf) -> dict[str, Any]:
    """Raises GgufError for an architecture that is not read, and for fields that are missing."""
    architecture = _architecture(file)
    hidden, heads = file.own("embedding_length", int), file.own("attention.head_count", int)
    head_dim = int(file.other("attention.key_length", hidden // heads))
    if int(file.other("rope.dimension_count", head_dim)) != head_dim:
        raise GgufError(f"{file.path} rotates a part of each head only, which no {file.architecture} model here does")
    embedding = file.tensors.get("token_embd.weight")
    config: dict[str, Any] = {
        "architectures": [architecture.model_class],
        "model_type": file.architecture,
        "dtype": "bfloat16",
        "hidden_act": "silu",
        "vocab_size": embedding.shape[0] if embedding is not None else 0,
        "hidden_size": hidden,
        "intermediate_size": file.own("feed_forward_length", int),
        "num_hidden_layers": file.own("block_count", int),
        "num_attention_heads": heads,
        "num_key_value_heads": int(file.other("attention.head_count_kv", heads)),
        "head_dim": head_dim,
        "max_position_embeddings": file.own("context_length", int),
        "rms_norm_eps": file.number("attention.layer_norm_rms_epsilon"),
        "rope_parameters": _rope(file, head_dim),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "bos_token_id": file.fields.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": end_ids(file),
        "pad_token_id": file.fields.get("tokenizer.ggml.padding_token_id"),
    }
    return config | (_windows(file, config["num_hidden_layers"]) if file.architecture == "exaone4" else {})


def placed_tensors(file: Gguf, config: Mapping[str, Any]) -> list[Placed]:
    """All weights of the model. Raises GgufError for one that is missing, not known, or of a type that is not read."""
    wanted = _wanted(_architecture(file), config)
    found = []
    for name, tensor in file.tensors.items():
        if name == _ROPE_FACTORS:
            continue
        if name not in wanted:
            raise GgufError(f"{file.path} has a tensor {name}, which no {file.architecture} model here has")
        place, shape = wanted.pop(name)
        if tensor.shape != shape:
            raise GgufError(
                f"{file.path}: {name} has {_times(tensor.shape)} weights, and its fields say {_times(shape)}"
            )
        check(f"{file.path}: {name}", tensor.kind)
        found.append(Placed(place, tensor, _interleaved(file, name, config)))
    if config["tie_word_embeddings"]:
        wanted.pop("output.weight")
    if wanted:
        raise GgufError(f"{file.path} has no tensor {next(iter(wanted))}; is it a whole model?")
    return found


def end_ids(file: Gguf) -> list[int]:
    """The tokens that end an answer, ascending."""
    named = (file.fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
    found = {token for token in named if isinstance(token, int)}
    tokens, kinds = (file.fields.get(f"tokenizer.ggml.{name}") or [] for name in ("tokens", "token_type"))
    found |= {i for i, (token, kind) in enumerate(zip(tokens, kinds, strict=False)) if _ends(token, kind)}
    return sorted(found)


def _ends(token: str, kind: int) -> bool:
    return kind == _CONTROL and token in _TURN_ENDS


def _architecture(file: Gguf) -> _Architecture:
    if (known := ARCHITECTURES.get(file.architecture)) is None:
        raise GgufError(
            f"{file.path} is of the architecture {file.architecture}, which is not read from GGUF; "
            f"{', '.join(ARCHITECTURES)} are, and any other from a checkpoint in transformers' format"
        )
    return known


def _wanted(architecture: _Architecture, config: Mapping[str, Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """By the file's name of each tensor, ours and its shape."""
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head_dim = config["head_dim"]
    queries, keys = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "attn_q": (queries, hidden),
        "attn_k": (keys, hidden),
        "attn_v": (keys, hidden),
        "attn_output": (hidden, queries),
        "ffn_gate": (inner, hidden),
        "ffn_up": (inner, hidden),
        "ffn_down": (hidden, inner),
        "attn_q_norm": (head_dim,),
        "attn_k_norm": (head_dim,),
    }
    wanted = {}
    for layer in range(config["num_hidden_layers"]):
        for theirs, ours in architecture.tensors.items():
            shape = shapes.get(theirs, (hidden,))
            wanted[f"blk.{layer}.{theirs}.weight"] = (f"model.layers.{layer}.{ours}.weight", shape)
            if architecture.biases and theirs in ("attn_q", "attn_k", "attn_v"):
                wanted[f"blk.{layer}.{theirs}.bias"] = (f"model.layers.{layer}.{ours}.bias", shape[:1])
    for theirs, ours in _AROUND.items():
        wanted[f"{theirs}.weight"] = (f"{ours}.weight", (hidden,) if theirs == "output_norm" else (vocabulary, hidden))
    return wanted


def _interleaved(file: Gguf, name: str, config: Mapping[str, Any]) -> int:
    """Heads whose rows the converter has interleaved, which it does for llama alone."""
    if file.architecture != "llama":
        return 0
    if name.endswith(".attn_q.weight"):
        return int(config["num_attention_heads"])
    return int(config["num_key_value_heads"]) if name.endswith(".attn_k.weight") else 0


def _windows(file: Gguf, layers: int) -> dict[str, Any]:
    """Which layers slide; without a pattern, as llama.cpp does, three of four."""
    window = file.other("attention.sliding_window")
    if not window:
        return {"sliding_window": None, "layer_types": ["full_attention"] * layers}
    pattern = file.other("attention.sliding_window_pattern") or [layer % 4 != 3 for layer in range(layers)]
    if not isinstance(pattern, list) or len(pattern) != layers:
        raise GgufError(
            f"{file.path} has a strange exaone4.attention.sliding_window_pattern: one for each layer is needed"
        )
    kinds = ["sliding_attention" if slides else "full_attention" for slides in pattern]
    return {"sliding_window": int(window), "layer_types": kinds}


def _rope(file: Gguf, head_dim: int) -> dict[str, Any]:
    """Raises GgufError for a kind that is not known."""
    theta = file.number("rope.freq_base", 10_000.0)
    if _ROPE_FACTORS in file.tensors:
        return _llama3(file, theta, head_dim)
    kind = file.other("rope.scaling.type", "none")
    if kind == "none":
        return {"rope_type": "default", "rope_theta": theta}
    if kind not in ("linear", "yarn"):
        raise GgufError(f"{file.path} scales its rope as {kind}, which is not read; none, linear and yarn are")
    rope: dict[str, Any] = {
        "rope_type": kind,
        "rope_theta": theta,
        "factor": file.number("rope.scaling.factor"),
    }
    if kind == "yarn":
        rope["original_max_position_embeddings"] = file.own("rope.scaling.original_context_length", int)
    return rope


def _llama3(file: Gguf, theta: float, head_dim: int) -> dict[str, Any]:
    """A file has Llama 3's scaling as a divisor for each frequency: what it was made from is tried, and compared."""
    divisors = file.floats(_ROPE_FACTORS)
    stated = file.other("rope.scaling.original_context_length")
    for original in dict.fromkeys((stated or 8192, 8192)):
        rope = {
            "rope_type": "llama3",
            "rope_theta": theta,
            "factor": float(divisors.max()),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": int(original),
        }
        if divisors.shape == (head_dim // 2,) and np.allclose(divisors, _divisors(rope, head_dim), rtol=1e-3):
            return rope
    raise GgufError(
        f"{file.path} has a {_ROPE_FACTORS} that is not Llama 3's: take the checkpoint in transformers' format"
    )


def _divisors(rope: Mapping[str, Any], head_dim: int) -> list[float]:
    """Llama 3's: long waves are divided by the factor, short ones by 1, and those between by something between."""
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    found = []
    for i in range(0, head_dim, 2):
        wave = 2 * math.pi * rope["rope_theta"] ** (i / head_dim)
        smooth = min(max((rope["original_max_position_embeddings"] / wave - low) / (high - low), 0.0), 1.0)
        found.append(1 / ((1 - smooth) / factor + smooth))
    return found


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
