"""Contents of a small model's config.json, fixed or random, in every dialect. Needs no torch."""

import random
from typing import Any

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
