"""vLLM's own planning of a model's KV cache: the model is built, but without memory for its weights."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import (
        cleanup_dist_env_and_memory,
        init_distributed_environment,
        initialize_model_parallel,
    )
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.layers.rotary_embedding import _ROPE_DICT
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.v1.core.kv_cache_utils import get_kv_cache_capacity, get_kv_cache_configs
    from vllm.v1.core.single_type_kv_cache_manager import register_all_kvcache_specs
    from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheSpec


def engine_config(folder: Path, config: dict[str, Any], **options: Any) -> VllmConfig:
    """What an engine would run a model of this config.json with; `folder` takes the file."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    arguments = EngineArgs(str(folder), skip_tokenizer_init=True, async_scheduling=False, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        vllm_config = arguments.create_engine_config()
    vllm_config.cache_config.kv_cache_layout = "LBHNC"  # the engine would ask its attention backend
    return vllm_config


@contextmanager
def one_rank(rendezvous: Path) -> Iterator[None]:
    """The process groups that vLLM's layers ask for their rank."""
    init_distributed_environment(1, 0, f"file://{rendezvous}", 0, "gloo")
    initialize_model_parallel(1, 1)
    try:
        yield
    finally:
        cleanup_dist_env_and_memory()


def layer_specs(vllm_config: VllmConfig, rendezvous: Path) -> dict[str, KVCacheSpec]:
    """What each attention layer says about its pages, by the layer's name. `rendezvous`: a path for a new file."""
    with warnings.catch_warnings(), set_current_vllm_config(vllm_config), one_rank(rendezvous):
        warnings.simplefilter("ignore")
        # The ropes without data must not stay where later models of the process look for theirs.
        with torch.device("meta"), patch.dict(_ROPE_DICT):
            initialize_model(vllm_config)
        layers = vllm_config.compilation_config.static_forward_context
        return {name: layer.get_kv_cache_spec(vllm_config) for name, layer in layers.items()}


def plan(vllm_config: VllmConfig, specs: dict[str, KVCacheSpec], memory: int) -> tuple[KVCacheConfig, float]:
    """The engine's layout of so many bytes, and how many requests of `max_model_len` it says they hold."""
    register_all_kvcache_specs(vllm_config)  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (layout,) = get_kv_cache_configs(vllm_config, [dict(specs)], [memory])
    return layout, get_kv_cache_capacity(vllm_config, layout)[1]
