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


def random_fields(rng: random.Random, number: int) -> Fields:
    """A random shape, written in a random dialect; with `number`, what matters most takes its turns."""
    kv_heads, ratio = rng.choice([(1, 1), (1, 4), (2, 1), (2, 2), (2, 3), (1, 5), (4, 2)])
    return fields(
        hidden_size=16 * rng.randint(3, 9),
        intermediate_size=16 * rng.randint(4, 14),
        num_attention_heads=kv_heads * ratio,
        num_key_value_heads=kv_heads,
        head_dim=[64, 32, 128, 80][number % 4],
        tie_word_embeddings=number % 2 == 1,
        vocab_size=rng.randint(70, 200),
        **(_all_global(rng) if number % 3 == 2 else _hybrid(rng)),
        **_random_rope(rng, ["llama3", "default", "llama3", "linear"][(number // 2) % 4]),
    )


def _hybrid(rng: random.Random) -> Fields:
    layers = rng.randint(4, 8)
    # A null layer_types takes the one of `fields` away.
    config: Fields = {"num_hidden_layers": layers, "sliding_window": rng.randint(33, 80), "layer_types": None}
    dialect = rng.choice(["letters", "number", "listed"])
    if dialect == "letters":
        return config | {"sliding_window_pattern": rng.choice(["LLLG", "LG", "GLL", "LLGLG"])}
    if dialect == "number":
        return config | {"sliding_window_pattern": rng.randint(2, 4)}
    listed = [
        "sliding_attention",
        "full_attention",
        *rng.choices(["sliding_attention", "full_attention"], k=layers - 2),
    ]
    return config | {"layer_types": listed, "sliding_window_pattern": "LLLG"}


def _all_global(rng: random.Random) -> Fields:
    layers = rng.randint(3, 6)
    return {"num_hidden_layers": layers} | rng.choice(
        [
            {"sliding_window": None, "sliding_window_pattern": None, "layer_types": None},
            {"sliding_window": None, "sliding_window_pattern": "LLLG", "layer_types": ["full_attention"] * layers},
            {"sliding_window": 64, "sliding_window_pattern": 1, "layer_types": None},
        ]
    )


def _random_rope(rng: random.Random, kind: str) -> Fields:
    theta = rng.choice([1e4, 1e6])
    scaling: Fields | None = {
        "default": None,
        "linear": {"rope_type": "linear", "factor": 4.0},
        "llama3": {
            "rope_type": "llama3",
            "factor": 16.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128,
        },
    }[kind]
    dialect = rng.choice(["old", "legacy", "new"])
    if dialect == "new":
        return {"rope_parameters": {"rope_type": "default"} | (scaling or {}) | {"rope_theta": theta}}
    if dialect == "legacy" and scaling:
        scaling["type"] = scaling.pop("rope_type")
    return {"rope_parameters": None, "rope_theta": theta, "rope_scaling": scaling}
