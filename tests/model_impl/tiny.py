"""Small random models of the architecture: their configs in every dialect, their checkpoints, transformers' scores."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from transformers import PreTrainedModel

from model_impl.hf_config import canonical_fields

Fields = dict[str, Any]


def fields(**changes: Any) -> Fields:
    """A valid hybrid config of four layers, in canonical form, with fields changed."""
    return {
        "architectures": ["Exaone4ForCausalLM"],
        "model_type": "exaone4",
        "vocab_size": 101,
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "sliding_window": 40,
        "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 0,
    } | changes


def random_fields(rng: random.Random) -> Fields:
    """A random shape, written in a random dialect."""
    head_dim = rng.choice([32, 64, 80, 128])
    kv_heads, ratio = rng.choice([(1, 1), (1, 4), (2, 1), (2, 2), (2, 3), (1, 5), (4, 2)])
    return fields(
        hidden_size=16 * rng.randint(3, 9),
        intermediate_size=16 * rng.randint(4, 14),
        num_attention_heads=kv_heads * ratio,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        tie_word_embeddings=rng.random() < 0.5,
        vocab_size=rng.randint(70, 200),
        **_random_layers(rng),
        **_random_rope(rng),
    )


def _random_layers(rng: random.Random) -> Fields:
    layers = rng.randint(3, 8)
    window = rng.randint(33, 80)
    dialect = rng.choice(["letters", "letters", "number", "listed", "listed", "null", "all global"])
    # A null layer_types takes the one of `fields` away.
    common = {"num_hidden_layers": layers, "sliding_window": window, "layer_types": None}
    if dialect == "letters":
        return common | {"sliding_window_pattern": rng.choice(["LLLG", "LG", "GL", "LLGLG", "L"])}
    if dialect == "number":
        return common | {"sliding_window_pattern": rng.randint(1, 5)}
    if dialect == "null":
        return common | {"sliding_window": None, "sliding_window_pattern": None}
    if dialect == "all global":
        return common | {"sliding_window": None, "layer_types": ["full_attention"] * layers}
    kinds = ["sliding_attention", rng.choice(["sliding_attention", "full_attention"]), "full_attention"]
    listed = kinds[:2] + [rng.choice(kinds) for _ in range(layers - 2)]
    return common | {"layer_types": listed, "sliding_window_pattern": "LLLG"}


def _random_rope(rng: random.Random) -> Fields:
    theta = rng.choice([1e4, 1e6])
    scaling = rng.choice(
        [
            None,
            {"rope_type": "linear", "factor": 4.0},
            {
                "rope_type": "llama3",
                "factor": 16.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 128,
            },
        ]
    )
    dialect = rng.choice(["old", "legacy", "new"])
    if dialect == "new":
        return {"rope_parameters": {"rope_type": "default"} | (scaling or {}) | {"rope_theta": theta}}
    if dialect == "legacy" and scaling:
        scaling["type"] = scaling.pop("rope_type")
    return {"rope_parameters": None, "rope_theta": theta, "rope_scaling": scaling}


def save_checkpoint(folder: Path, config: Fields, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Writes a random model, its config.json just as given; returns transformers' model of the same weights."""
    # transformers' own config class: what ours makes of a dialect has to be what transformers takes as canonical.
    reference_config = transformers.Exaone4Config(**canonical_fields(config), initializer_range=0.3)
    torch.manual_seed(0)
    model: Any = transformers.Exaone4ForCausalLM(reference_config)  # type: ignore[no-untyped-call, unused-ignore]
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:  # ones by default, which would hide a norm that is not loaded
                weight.uniform_(0.5, 1.5)
    model.to(dtype).eval().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config | {"dtype": str(dtype).removeprefix("torch.")}))
    return cast("PreTrainedModel", model)


def reference_logprobs(model: PreTrainedModel, ids: Sequence[int]) -> torch.Tensor:
    """The log-probability that transformers gives each id after the first, given those before it: (len(ids) - 1)."""
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([ids])).logits[0]
    return logits[:-1].float().log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
