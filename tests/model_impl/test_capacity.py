"""`model_impl.capacity` and vLLM's own planner agree about our model's pages."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from model_impl.capacity import Cache, Load, uniform_cache, windowed_cache
from model_impl.exaone4.architecture import Architecture
from tests.model_impl.config_fields import random_fields
from tests.model_impl.planner import engine_config, layer_specs, plan

CONFIGS = Path(__file__).with_name("configs")
GIB = 1 << 30


def published(name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((CONFIGS / f"{name}.json").read_text())
    return config


@pytest.mark.engine
@pytest.mark.parametrize("page_tokens", [32, 64])
def test_the_32b_holds_three_and_a_half_times_the_requests(page_tokens: int, tmp_path: Path) -> None:
    config = published("exaone-4.0-32b")
    options: dict[str, Any] = {"max_model_len": 131072, "block_size": page_tokens, "max_num_batched_tokens": 2048}
    memory = 160 * GIB
    concurrency = {}
    for uniform in False, True:
        vllm_config = engine_config(tmp_path, config, disable_hybrid_kv_cache_manager=uniform, **options)
        specs = layer_specs(vllm_config, tmp_path / f"rendezvous-{uniform}")
        layout, concurrency[uniform] = plan(vllm_config, specs, memory)
        kinds = [type(group.kv_cache_spec).__name__ for group in layout.kv_cache_groups]
        assert sorted(kinds) == ["FullAttentionSpec"] + ([] if uniform else ["SlidingWindowSpec"] * 3)
        ours = (uniform_cache if uniform else windowed_cache)(
            Architecture.from_config(config), Load(131072, page_tokens, 2048, bytes_per_value=2)
        )
        assert_same(ours, layout, concurrency[uniform], memory)
    assert 3.5 <= concurrency[False] / concurrency[True] < 3.66


@pytest.mark.engine
def test_the_plan_is_the_engines_for_any_mix_of_layers(tmp_path: Path) -> None:
    rng = random.Random(5)
    for number in range(6):
        config = random_fields(rng, number) | {"num_hidden_layers": 11, "layer_types": None, "sliding_window": 40}
        # 4:7 and 5:6 have no group size that divides both.
        config["sliding_window_pattern"] = ["LLLG", "LG", "LGGLGGLGGLL", "GGL", "L", None][number]
        load = Load(
            tokens=rng.randint(600, 4000), page_tokens=32, tokens_in_flight=rng.randint(20, 300), bytes_per_value=2
        )
        vllm_config = engine_config(
            tmp_path,
            config,
            dtype="bfloat16",
            max_model_len=load.tokens,
            block_size=load.page_tokens,
            max_num_batched_tokens=load.tokens_in_flight,
            max_num_seqs=4,
        )
        specs = layer_specs(vllm_config, tmp_path / f"rendezvous-{number}")
        layout, concurrency = plan(vllm_config, specs, GIB)
        assert_same(windowed_cache(Architecture.from_config(config), load), layout, concurrency, GIB)


def assert_same(ours: Cache, layout: Any, concurrency: float, memory: int) -> None:
    groups = [(type(group.kv_cache_spec).__name__, len(group.layer_names)) for group in layout.kv_cache_groups]
    names = {"full_attention": "FullAttentionSpec", "sliding_attention": "SlidingWindowSpec"}
    assert sorted((names[group.kind], group.layers) for group in ours.groups) == sorted(groups)
    assert memory // ours.page_bytes == layout.num_blocks
    assert ours.concurrency(memory) == concurrency
