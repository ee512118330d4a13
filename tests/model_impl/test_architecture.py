"""Every released dialect of config.json is read, and what cannot be read is refused by name."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_impl.exaone4.architecture import GLOBAL, SLIDING, Architecture, ConfigError
from tests.model_impl.config_fields import fields

LLAMA3 = {
    "factor": 16.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def pattern(letters: str) -> tuple[str, ...]:
    return tuple(SLIDING if letter == "L" else GLOBAL for letter in letters)


def test_layer_types_decide_over_the_pattern() -> None:
    architecture = Architecture.from_config(fields(layer_types=list(pattern("GLLL")), sliding_window_pattern="LLLG"))
    assert architecture.layer_types == pattern("GLLL")


@pytest.mark.parametrize(
    ("written", "layers", "read"),
    [
        ("LLLG", 8, "LLLGLLLG"),
        ("LLLG", 6, "LLLGLL"),  # the last layer is not forced to be global
        ("GL", 3, "GLG"),
        (4, 8, "LLLGLLLG"),
        (4, 6, "LLLGLL"),
        (1, 3, "GGG"),
        (None, 3, "GGG"),
    ],
)
def test_patterns(written: str | int | None, layers: int, read: str) -> None:
    config = fields(num_hidden_layers=layers, sliding_window_pattern=written, layer_types=None)
    assert Architecture.from_config(config).layer_types == pattern(read)
    del config["layer_types"]
    assert Architecture.from_config(config).layer_types == pattern(read)


@pytest.mark.parametrize("changes", [{"sliding_window_pattern": None}, {"sliding_window_pattern": "LLLG"}, {}])
def test_without_a_window_every_layer_is_global_and_has_rope(changes: dict[str, Any]) -> None:
    architecture = Architecture.from_config(fields(layer_types=None, sliding_window=None) | changes)
    assert architecture.layer_types == pattern("GGGG")
    assert architecture.sliding_window is None
    assert all(architecture.has_rope(layer) for layer in range(4))


def test_in_a_hybrid_only_sliding_layers_have_rope() -> None:
    architecture = Architecture.from_config(fields())
    assert [architecture.has_rope(layer) for layer in range(4)] == [True, True, True, False]


def test_a_window_that_no_layer_uses_is_none() -> None:
    architecture = Architecture.from_config(fields(layer_types=[GLOBAL] * 4, sliding_window=4096))
    assert architecture.sliding_window is None
    assert architecture.has_rope(0)


@pytest.mark.parametrize(
    "written",
    [
        {"rope_theta": 1e6, "rope_scaling": {"rope_type": "llama3"} | LLAMA3},
        {"rope_theta": 1e6, "rope_scaling": {"type": "llama3"} | LLAMA3},
        {"rope_theta": 1e6, "rope_scaling": {"type": "llama3", "rope_type": "llama3"} | LLAMA3},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e6} | LLAMA3},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e6} | LLAMA3, "rope_scaling": None},
        {"rope_parameters": {"rope_type": "llama3"} | LLAMA3, "rope_theta": 1e6},
        {
            "rope_parameters": {"rope_type": "llama3", "rope_theta": 1e6} | LLAMA3,
            "rope_scaling": {"rope_type": "llama3"} | LLAMA3,
        },
    ],
)
def test_one_rope_in_seven_dialects(written: dict[str, Any]) -> None:
    architecture = Architecture.from_config(fields(rope_parameters=None) | written)
    assert architecture.rope == {"rope_type": "llama3", "rope_theta": 1e6} | LLAMA3


@pytest.mark.parametrize("scaling", [{}, {"rope_scaling": None}, {"rope_scaling": {"rope_type": "default"}}])
def test_rope_without_scaling(scaling: dict[str, Any]) -> None:
    architecture = Architecture.from_config(fields(rope_parameters=None, rope_theta=1e4) | scaling)
    assert architecture.rope == {"rope_type": "default", "rope_theta": 1e4}


def test_what_may_be_left_out() -> None:
    config = fields()
    for name in ("num_key_value_heads", "head_dim", "rms_norm_eps", "tie_word_embeddings", "hidden_act"):
        del config[name]
    architecture = Architecture.from_config(config)
    assert (architecture.num_kv_heads, architecture.head_dim) == (4, 24)
    assert (architecture.rms_norm_eps, architecture.tied_embeddings) == (1e-5, False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type 'llama'"),
        ({"model_type": None}, "no model_type"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"hidden_size": None}, "no hidden_size"),
        ({"vocab_size": "102400"}, "vocab_size is '102400'"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"intermediate_size": 0}, "intermediate_size is 0"),
        ({"num_key_value_heads": 3}, "not a multiple of num_key_value_heads"),
        ({"head_dim": None, "hidden_size": 97}, "no head_dim"),
        ({"layer_types": [SLIDING]}, "layer_types has 1 entries, num_hidden_layers is 4"),
        ({"layer_types": ["mamba"] * 4}, "layer_types is"),
        ({"layer_types": "LLLG"}, "layer_types is"),
        ({"sliding_window": None}, "no sliding_window"),
        ({"sliding_window": 0}, "sliding_window is 0"),
        ({"layer_types": None}, "neither layer_types nor sliding_window_pattern"),
        ({"layer_types": None, "sliding_window_pattern": "LLXG"}, "sliding_window_pattern is 'LLXG'"),
        ({"layer_types": None, "sliding_window_pattern": ""}, "sliding_window_pattern is ''"),
        ({"layer_types": None, "sliding_window_pattern": 0}, "sliding_window_pattern is 0"),
        ({"rope_parameters": None}, "no rope_theta"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e6}}, "no factor"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e6}}, "rope_type is 'longrope'"),
        ({"rope_parameters": {"rope_type": ["llama3"], "rope_theta": 1e6}}, "rope_type is"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": "x"}}, "rope_theta is 'x'"),
        ({"rope_parameters": {SLIDING: {"rope_theta": 1e6}}}, "rope_parameters is"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "contradict"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Architecture.from_config(fields() | changes)


def test_a_window_has_to_be_stated() -> None:
    config = fields(layer_types=None, sliding_window_pattern="LLLG")
    del config["sliding_window"]
    with pytest.raises(ConfigError, match="neither layer_types nor sliding_window"):
        Architecture.from_config(config)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 200) | st.floats() | st.sampled_from(["LLLG", "", "llama3", SLIDING]),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(["type", "rope_type", "factor"]), inner)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(sorted(set(fields()) | {"rope_scaling", "rope_theta"})), JSON, max_size=4))
def test_any_json_is_accepted_or_refused_by_name(changes: dict[str, Any]) -> None:
    try:
        architecture = Architecture.from_config(fields() | changes)
    except ConfigError:
        return
    assert architecture.num_layers == len(architecture.layer_types) > 0
    assert (architecture.sliding_window is None) == (SLIDING not in architecture.layer_types)
