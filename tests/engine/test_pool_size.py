"""A small model's KV cache takes no more of a GPU than it is worth; and every start draws anew. No engine is loaded."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.checkpoint import ModelError
from engine.defaults import GIB, KV_CACHE_TOKENS, MOST_CACHED_TOKENS, Machine, engine_defaults

pytestmark = pytest.mark.usefixtures("vllm_ignoring_warnings")

GPU = Machine("gpu", cpus=(0, 1), available_memory=64 * GIB)
PAGE = 16


def specs(layers: int, heads: int, size: int) -> dict[str, Any]:
    """Three of four layers slide."""
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec

    shape: dict[str, Any] = {
        "block_size": PAGE,
        "num_kv_heads": heads,
        "head_size": size,
        "dtype": torch.bfloat16,
    }
    return {
        str(layer): SlidingWindowSpec(**shape, sliding_window=128) if layer % 4 != 3 else FullAttentionSpec(**shape)
        for layer in range(layers)
    }


def taken(layers: dict[str, Any], available: int, most_tokens: int) -> int:
    from engine.loading import _reporting

    class Fake:
        def determine_available_memory(self) -> list[int]:
            return [available]

        def get_kv_cache_specs(self) -> list[dict[str, Any]]:
            return [layers]

    executor: Any = _reporting(Fake, lambda stage, fraction: None, most_tokens)  # type: ignore[arg-type]
    (memory,) = executor().determine_available_memory()
    return int(memory)


def test_the_embedded_model_leaves_the_gpu_to_others() -> None:
    layers = specs(8, heads=2, size=32)
    assert taken(layers, 130 * GIB, MOST_CACHED_TOKENS) == MOST_CACHED_TOKENS * 8 * 2 * 2 * 32 * 2 == 8 * GIB
    assert taken(layers, 5 * GIB, MOST_CACHED_TOKENS) == 5 * GIB
    assert taken(layers, 130 * GIB, 0) == 130 * GIB


def test_a_model_that_can_use_the_gpu_gets_it() -> None:
    assert taken(specs(32, heads=8, size=64), 130 * GIB, MOST_CACHED_TOKENS) == 130 * GIB


def test_layers_that_keep_something_else_are_vllms_to_judge() -> None:
    layers: dict[str, Any] = {
        "other": SimpleNamespace(block_size=PAGE, page_size_bytes=1),
        **specs(4, heads=2, size=32),
    }
    assert taken(layers, 130 * GIB, MOST_CACHED_TOKENS) == 130 * GIB


def test_it_is_a_default_on_gpus_that_options_go_before(monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.loading import _most_tokens

    (choice,) = [one for one in engine_defaults("model", (), {}, GPU) if one.name == KV_CACHE_TOKENS]
    monkeypatch.setenv(KV_CACHE_TOKENS, str(choice.value))
    open_, chosen = (SimpleNamespace(cache_config=SimpleNamespace(kv_cache_memory_bytes=size)) for size in (None, GIB))
    assert (_most_tokens(open_), _most_tokens(chosen)) == (MOST_CACHED_TOKENS, 0)
    monkeypatch.setenv(KV_CACHE_TOKENS, "all")
    with pytest.raises(ModelError, match="must be a number of tokens, 0 for all that fit; it is 'all'"):
        _most_tokens(open_)


def test_every_start_draws_anew_unless_it_is_told_a_seed(checkpoint: Path) -> None:
    from engine.loading import _parse

    seeds = {_parse(str(checkpoint), [], []).seed for _ in range(8)}
    assert len(seeds) > 1
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert _parse(str(checkpoint), ["--seed", "0"], []).seed == 0
