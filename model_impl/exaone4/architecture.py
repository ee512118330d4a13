"""The EXAONE 4.0 architecture as one typed value, read from a `config.json` of any released dialect.

Plain Python: `twogear plan` uses it without torch. `model.py` builds layers from it, `config.py` hands it to vLLM
and transformers.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

MODEL_TYPE = "exaone4"

LayerType = Literal["sliding_attention", "full_attention"]
SLIDING: LayerType = "sliding_attention"
GLOBAL: LayerType = "full_attention"

RopeParameters = dict[str, float | int | str]

# What each kind of rope has beside its theta (transformers' modeling_rope_utils).
_ROPE_FIELDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


class ConfigError(ValueError):
    """A config that does not describe a model of this architecture; the message names the field."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """Shape of a model: per layer QK-norm attention and a gated MLP, each with a norm on its output.

    `layer_types` holds one of SLIDING and GLOBAL per layer, lowest first. `sliding_window` counts the tokens that a
    sliding layer sees, the current one included; it is None exactly when no layer slides. `rope` is a dict in
    transformers' `rope_parameters` form, always with `rope_type` and `rope_theta`.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    layer_types: tuple[LayerType, ...]
    sliding_window: int | None
    max_positions: int
    rope: RopeParameters
    rms_norm_eps: float
    tied_embeddings: bool

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Architecture":
        """Reads the content of a `config.json`.

        Raises:
            ConfigError: the config is of another architecture, or a field is missing or contradictory.
        """
        _check_family(config)
        num_heads = _count(config, "num_attention_heads")
        num_kv_heads = _count(config, "num_key_value_heads", default=num_heads)
        if num_heads % num_kv_heads:
            raise ConfigError(
                f"num_attention_heads ({num_heads}) is not a multiple of num_key_value_heads ({num_kv_heads})"
            )
        layer_types = _layer_types(config, _count(config, "num_hidden_layers"))
        return cls(
            vocab_size=_count(config, "vocab_size"),
            hidden_size=_count(config, "hidden_size"),
            intermediate_size=_count(config, "intermediate_size"),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=_head_dim(config, num_heads),
            layer_types=layer_types,
            sliding_window=_count(config, "sliding_window") if SLIDING in layer_types else None,
            max_positions=_count(config, "max_position_embeddings"),
            rope=_rope(config),
            rms_norm_eps=_number(config, "rms_norm_eps", default=1e-5),
            tied_embeddings=_flag(config, "tie_word_embeddings"),
        )

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.layer_types)

    @property
    def num_sliding_layers(self) -> int:
        """Number of decoder layers that see only the window."""
        return self.layer_types.count(SLIDING)

    def has_rope(self, layer: int) -> bool:
        """Whether a layer rotates queries and keys: the sliding ones, or all of them in a model that has none."""
        return self.sliding_window is None or self.layer_types[layer] == SLIDING

    @property
    def parameters(self) -> int:
        """All parameters of the model."""
        return self.linear_parameters + self.other_parameters

    @property
    def linear_parameters(self) -> int:
        """Parameters of all projections inside the decoder layers, which is what quantization shrinks."""
        attention = 2 * self.hidden_size * (self.num_heads + self.num_kv_heads) * self.head_dim
        mlp = 3 * self.hidden_size * self.intermediate_size
        return self.num_layers * (attention + mlp)

    @property
    def other_parameters(self) -> int:
        """Parameters of the embeddings, the output head (where it is not tied) and the norms."""
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tied_embeddings else 2)
        norms = self.num_layers * 2 * (self.hidden_size + self.head_dim) + self.hidden_size
        return embeddings + norms


def _check_family(config: Mapping[str, Any]) -> None:
    model_type = config.get("model_type")
    if model_type != MODEL_TYPE:
        found = "no model_type" if model_type is None else f"model_type {model_type!r}"
        raise ConfigError(f"config has {found}; only the EXAONE 4.0 architecture is supported (model_type 'exaone4')")
    if (activation := config.get("hidden_act", "silu")) != "silu":
        raise ConfigError(f"hidden_act is {activation!r}; EXAONE 4.0 has 'silu'")


def _count(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """A positive integer field; an absent or null one takes the default."""
    value = config.get(name)
    if value is None:
        value = default
    if value is None:
        raise ConfigError(f"config has no {name}")
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} is {value!r}; expected a positive integer")
    return value


def _number(config: Mapping[str, Any], name: str, default: float | None = None) -> float:
    """A positive number; an absent or null one takes the default."""
    value = config.get(name)
    if value is None:
        value = default
    if value is None:
        raise ConfigError(f"config has no {name}")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigError(f"{name} is {value!r}; expected a positive number")
    return value


def _flag(config: Mapping[str, Any], name: str) -> bool:
    """True or false; an absent or null one is false."""
    value = config.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise ConfigError(f"{name} is {value!r}; expected true or false")
    return value


def _head_dim(config: Mapping[str, Any], num_heads: int) -> int:
    if config.get("head_dim") is None and (hidden_size := _count(config, "hidden_size")) % num_heads:
        raise ConfigError(f"config has no head_dim, and hidden_size ({hidden_size}) / num_attention_heads is not whole")
    return _count(config, "head_dim", default=_count(config, "hidden_size") // num_heads)


def _layer_types(config: Mapping[str, Any], num_layers: int) -> tuple[LayerType, ...]:
    """The kind of each layer: `layer_types` decides, else `sliding_window_pattern`.

    A pattern repeats from the lowest layer on, and the last layer follows it like any other (LG's reading; the
    docstring in transformers, which makes the last layer global, does not describe what transformers does).
    """
    if (listed := config.get("layer_types")) is not None:
        if not isinstance(listed, list | tuple) or any(kind not in (SLIDING, GLOBAL) for kind in listed):
            raise ConfigError(f"layer_types is {listed!r}; expected a list of {SLIDING!r} and {GLOBAL!r}")
        if len(listed) != num_layers:
            raise ConfigError(f"layer_types has {len(listed)} entries, num_hidden_layers is {num_layers}")
        return tuple(SLIDING if kind == SLIDING else GLOBAL for kind in listed)
    if "sliding_window" not in config:
        raise ConfigError("config has neither layer_types nor sliding_window (null where every layer is global)")
    if config["sliding_window"] is None:
        return (GLOBAL,) * num_layers
    if "sliding_window_pattern" not in config:
        raise ConfigError("config has a sliding_window, but neither layer_types nor sliding_window_pattern")
    pattern = config["sliding_window_pattern"]
    return tuple(SLIDING if _slides(pattern, layer) else GLOBAL for layer in range(num_layers))


def _slides(pattern: object, layer: int) -> bool:
    """Whether a layer is sliding under a pattern: "LLLG", 4 (every fourth is global), or null (none slides)."""
    if pattern is None:
        return False
    if isinstance(pattern, int) and not isinstance(pattern, bool) and pattern >= 1:
        return (layer + 1) % pattern != 0
    if isinstance(pattern, str) and pattern and set(pattern) <= {"L", "G"}:
        return pattern[layer % len(pattern)] == "L"
    raise ConfigError(
        f"sliding_window_pattern is {pattern!r}; expected letters L (local) and G (global) such as 'LLLG', "
        "a positive integer, or null"
    )


def _rope(config: Mapping[str, Any]) -> RopeParameters:
    """Joins `rope_theta`, the old `rope_scaling` (kind under `rope_type` or `type`) and the new `rope_parameters`."""
    old = _rope_dict(config, "rope_scaling")
    new = _rope_dict(config, "rope_parameters")
    if old and new and {**new, **old} != {**old, **new}:
        raise ConfigError("rope_scaling and rope_parameters contradict each other")
    fields = {**old, **new}
    kind = fields.get("rope_type", "default")
    if not isinstance(kind, str) or kind not in _ROPE_FIELDS:
        raise ConfigError(f"rope_type is {kind!r}; supported are {', '.join(_ROPE_FIELDS)}")
    theta = _number(fields if fields.get("rope_theta") is not None else config, "rope_theta")
    rope: RopeParameters = {"rope_type": kind, "rope_theta": theta}
    return rope | {name: _number(fields, name) for name in _ROPE_FIELDS[kind]}


def _rope_dict(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = config.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping) or any(isinstance(entry, Mapping) for entry in value.values()):
        raise ConfigError(f"{name} is {value!r}; expected one object of numbers for all layers, or null")
    fields = dict(value)
    legacy = fields.pop("type", None)
    if legacy is not None:
        fields.setdefault("rope_type", legacy)
    return fields
