"""transformers' config class for this architecture, made to read every released dialect.

It only rewrites fields into the one form that transformers and vLLM both understand; what the fields mean is
`architecture.py`'s knowledge. Transformers' own class crashes on `sliding_window_pattern: "LLLG"` and, without
`layer_types`, on null (5.19, `Exaone4Config.__post_init__`).
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import transformers

from model_impl.exaone4.architecture import MODEL_TYPE, Architecture

# Fields that the canonical form replaces.
_OLD_FIELDS = ("sliding_window_pattern", "rope_scaling", "rope_theta")


def canonical_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The same config with the layer kinds, the rope and the head size spelled out.

    Raises:
        ConfigError: the config is not of this architecture, or incomplete.
    """
    architecture = Architecture.from_config(fields)
    kept = {name: value for name, value in fields.items() if name not in _OLD_FIELDS}
    return kept | {
        "num_key_value_heads": architecture.num_kv_heads,
        "head_dim": architecture.head_dim,
        "layer_types": list(architecture.layer_types),
        "sliding_window": architecture.sliding_window,
        "rope_parameters": dict(architecture.rope),
    }


class Exaone4Config(transformers.Exaone4Config):  # type: ignore[no-untyped-call, unused-ignore]
    """Takes the place of the class of this name, so that transformers' Auto classes find model and tokenizer."""

    # There is no such thing as a default EXAONE 4.0: the sizes have to be given.
    has_no_defaults_at_init: ClassVar[bool] = True

    def __init__(self, **fields: Any) -> None:
        super().__init__(**canonical_fields({"model_type": MODEL_TYPE} | fields))
