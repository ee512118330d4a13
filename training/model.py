"""Builds and saves the checkpoint's model: transformers' Exaone4ForCausalLM at a recipe's size."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import Exaone4Config, Exaone4ForCausalLM

from training import attention
from training.recipe import ModelRecipe

_SLIDING_GAIN, _GLOBAL_GAIN = 1.5, 2.0


def build_config(recipe: ModelRecipe, *, eos_token_id: int, pad_token_id: int, bos_token_id: int) -> Exaone4Config:
    """The architecture of a recipe; `layer_types` is spelt out, so no reader has to guess the pattern."""
    pattern = {"L": "sliding_attention", "G": "full_attention"}
    config = Exaone4Config(
        vocab_size=recipe.vocabulary_size,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        max_position_embeddings=recipe.context,
        sliding_window=recipe.window,
        sliding_window_pattern=len(recipe.pattern),
        layer_types=[pattern[recipe.pattern[i % len(recipe.pattern)]] for i in range(recipe.layers)],
        rope_parameters={"rope_type": "default", "rope_theta": recipe.rope_theta},
        tie_word_embeddings=True,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
        bos_token_id=bos_token_id,
        dtype="float32",
    )
    config.head_dim = recipe.head_size  # not a declared field of transformers' class, but read by its attention
    return config


def initialize(model: Exaone4ForCausalLM) -> None:
    """Embeddings at RMS 1 and post-norm gains of 1/sqrt(2·layers), so that the residual stream starts as the tokens.

    With the default initialisation every sublayer adds RMS 1 to embeddings of RMS 0.02, and small models learn little.
    Normalised queries and keys bound attention scores to gain² · sqrt(head size): with heads of 32 and a gain of 1 no
    token can stand out among a hundred others, so copying is learnt late. The head is the embedding, whose rows have
    length sqrt(width): the final norm's gain takes that back, so that logits start at 1.
    """
    gain = 1.0 / math.sqrt(2 * model.config.num_hidden_layers)
    with torch.no_grad():
        torch.nn.init.normal_(model.model.embed_tokens.weight, std=1.0)
        for layer in model.model.layers:
            qk_gain = _SLIDING_GAIN if layer.self_attn.is_sliding else _GLOBAL_GAIN
            layer.post_attention_layernorm.weight.fill_(gain)
            layer.post_feedforward_layernorm.weight.fill_(gain)
            layer.self_attn.q_norm.weight.fill_(qk_gain)
            layer.self_attn.k_norm.weight.fill_(qk_gain)
        model.model.norm.weight.fill_(model.config.hidden_size**-0.5)


def build(config: Exaone4Config, seed: int) -> Exaone4ForCausalLM:
    """A freshly initialised model."""
    torch.manual_seed(seed)
    model: Exaone4ForCausalLM = Exaone4ForCausalLM._from_config(config, attn_implementation=attention.NAME)
    initialize(model)
    return model


def move(model: Exaone4ForCausalLM, device: torch.device) -> None:
    """To where it is trained. On a GPU its body is compiled at the first step; on CPUs kernels of ours do more."""
    model.to(device)  # type: ignore[arg-type]  # transformers wraps the method
    if device.type == "cuda":
        compile_body(model)


def compile_body(model: Exaone4ForCausalLM, backend: str = "inductor") -> None:
    """Has all but the head compiled, once for all batch sizes and lengths, by a backend of torch.compile."""
    model.model.compile(dynamic=True, backend=backend)


def save(config: Exaone4Config, weights: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Writes configs and bf16 `model.safetensors`; with a tokenizer beside them, `twogear serve` takes the folder."""
    copy = Exaone4ForCausalLM._from_config(config, dtype=torch.bfloat16)
    copy.load_state_dict({name: tensor.to(torch.bfloat16) for name, tensor in weights.items()})
    copy.config.dtype = "bfloat16"
    copy.save_pretrained(folder)
    generation = {"eos_token_id": config.eos_token_id, "pad_token_id": config.pad_token_id}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
