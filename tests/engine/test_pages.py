"""Page counts against vLLM's own KV cache manager, without a model: fails when an upgrade moves what `pages` reads."""

import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

PAGE, WINDOW, POOL = 32, 128, 101


@pytest.fixture
def vllm_ignoring_warnings() -> Iterator[None]:
    """What torch and vLLM deprecate of each other is not for these tests to fail on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def manager(vllm_ignoring_warnings: None) -> Any:
    """One sliding and one global group over a pool of 100 pages and the null page."""
    import torch
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.core.kv_cache_utils import init_none_hash
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec, SlidingWindowSpec

    init_none_hash(sha256)
    shape: dict[str, Any] = {"block_size": PAGE, "num_kv_heads": 1, "head_size": 8, "dtype": torch.float32}
    groups = [
        KVCacheGroupSpec(["sliding"], SlidingWindowSpec(**shape, sliding_window=WINDOW)),
        KVCacheGroupSpec(["global"], FullAttentionSpec(**shape)),
    ]
    return KVCacheManager(
        KVCacheConfig(num_blocks=POOL, kv_cache_tensors=[], kv_cache_groups=groups),
        max_model_len=4096,
        scheduler_block_size=PAGE,
        hash_block_size=PAGE,
    )


def new_request(name: str, length: int) -> Any:
    from vllm.sampling_params import SamplingParams
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher
    from vllm.v1.request import Request

    return Request(
        request_id=name,
        prompt_token_ids=list(range(length)),
        sampling_params=SamplingParams(max_tokens=100),
        pooling_params=None,
        block_hasher=get_request_block_hasher(PAGE, sha256),
    )


def counts(manager: Any) -> dict[str, tuple[int, int, int]]:
    """Per group used, cached, free; the parts always make up the pool."""
    from server.engine.pages import PageCounter

    scheduler = SimpleNamespace(kv_cache_manager=manager)
    engine: Any = SimpleNamespace(engine_core=SimpleNamespace(engine_core=SimpleNamespace(scheduler=scheduler)))
    groups = PageCounter(engine).count()
    assert all(group.page_size == PAGE for group in groups)
    assert len({group.free for group in groups}) == 1
    assert sum(group.used + group.cached for group in groups) + groups[0].free == POOL - 1
    return {group.group: (group.used, group.cached, group.free) for group in groups}


def test_a_window_gives_pages_back_and_global_pages_stay(manager: Any) -> None:
    assert counts(manager) == {"sliding": (0, 0, 100), "global": (0, 0, 100)}
    request = new_request("a", 640)
    assert manager.allocate_slots(request, 640)
    assert counts(manager) == {"sliding": (20, 0, 60), "global": (20, 0, 60)}
    request.num_computed_tokens = 640
    request.append_output_token_ids(5)
    assert manager.allocate_slots(request, 1)
    # The window of the next token begins at 640 - 127 = 513: 16 pages lie wholly before it.
    assert counts(manager) == {"sliding": (5, 16, 58), "global": (21, 0, 58)}
    manager.free(request)
    assert counts(manager) == {"sliding": (0, 20, 60), "global": (0, 20, 60)}


def test_a_page_shared_by_two_requests_counts_once(manager: Any) -> None:
    first, second = new_request("a", 640), new_request("b", 640)
    assert manager.allocate_slots(first, 640)
    first.num_computed_tokens = 640
    found, length, *_ = manager.get_computed_blocks(second)
    assert length == 640 - PAGE  # at least one token has to be computed
    assert manager.allocate_slots(second, 640 - length, length, found)
    used = {group: parts[0] for group, parts in counts(manager).items()}
    assert used == {"sliding": 21, "global": 21}
