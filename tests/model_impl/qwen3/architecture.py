"""The shape of a Qwen3 model as one typed value, from the content of a config.json. Plain Python."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MODEL_TYPE = "qwen3"


@dataclass(frozen=True, slots=True)
class Architecture:
    """Per layer, attention with a norm on each query and key head, then a gated MLP; each has a norm on its input."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    rope: dict[str, Any]
    rms_norm_eps: float
    tied_embeddings: bool

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Architecture":
        """Raises KeyError for a field that is missing."""
        return cls(
            vocab_size=config["vocab_size"],
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            num_layers=config["num_hidden_layers"],
            num_heads=config["num_attention_heads"],
            num_kv_heads=config["num_key_value_heads"],
            head_dim=config["head_dim"],
            max_positions=config["max_position_embeddings"],
            rope=dict(config["rope_parameters"]),
            rms_norm_eps=config["rms_norm_eps"],
            tied_embeddings=config["tie_word_embeddings"],
        )
