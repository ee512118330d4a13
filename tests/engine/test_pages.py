"""Page counts against vLLM's own KV cache manager, without a model: fails when an upgrade moves what `pages` reads."""

import random
from types import SimpleNamespace
from typing import Any

import pytest

PAGE, WINDOW, POOL = 32, 128, 101


@pytest.fixture
def manager(vllm_ignoring_warnings: None) -> Any:
    return new_manager()


def new_manager() -> Any:
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


def running() -> Any:
    from vllm.v1.request import RequestStatus

    return RequestStatus.RUNNING


def new_request(name: str, length: int) -> Any:
    return asked(name, list(range(length)))


def asked(name: str, ids: list[int]) -> Any:
    from vllm.sampling_params import SamplingParams
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher
    from vllm.v1.request import Request

    return Request(
        request_id=name,
        prompt_token_ids=ids,
        sampling_params=SamplingParams(max_tokens=100),
        pooling_params=None,
        block_hasher=get_request_block_hasher(PAGE, sha256),
    )


def counter_of(manager: Any) -> Any:
    """One for each manager, as an engine has: it counts from its beginning on."""
    from engine.vllm_internals.page_counter import PageCounter

    if not hasattr(manager, "counter_of_test"):
        scheduler = SimpleNamespace(kv_cache_manager=manager, _preempt_request=lambda *_: None)
        manager.counter_of_test = PageCounter(SimpleNamespace(scheduler=scheduler))
    return manager.counter_of_test


def counts(manager: Any) -> dict[str, tuple[int, int, int]]:
    """Per group used, cached, free; the parts always make up the pool."""
    groups = counter_of(manager).count()
    assert all(group.page_size == PAGE for group in groups)
    assert len({group.free for group in groups}) == 1
    assert sum(group.used + group.cached for group in groups) + groups[0].free == POOL - 1
    return {group.group: (group.used, group.cached, group.free) for group in groups}


def test_preemptions_are_counted_and_happen(manager: Any) -> None:
    from engine.vllm_internals.page_counter import PageCounter

    happened: list[tuple[Any, ...]] = []
    scheduler = SimpleNamespace(kv_cache_manager=manager, _preempt_request=lambda *args: happened.append(args))
    counter = PageCounter(SimpleNamespace(scheduler=scheduler))
    assert counter.preemptions() == 0
    scheduler._preempt_request("a", 1.0)
    scheduler._preempt_request("b", 2.0)
    assert counter.preemptions() == len(happened) == 2


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


def walked(manager: Any) -> dict[str, tuple[int, int]]:
    """Used and cached pages of each kind, by going through all of them."""
    from vllm.v1.core.kv_cache_utils import get_group_id

    kinds, managers, pool = ("sliding", "global"), manager.coordinator.single_type_managers, manager.block_pool
    used = [
        {block.block_id for blocks in one.req_to_blocks.values() for block in blocks if not block.is_null}
        for one in managers
    ]
    kept = [block for block in pool.blocks if block.ref_cnt == 0 and block.block_hash is not None]
    cached = [sum(get_group_id(block.block_hash) == number for block in kept) for number in range(2)]
    return {kind: (len(used[number]), cached[number]) for number, kind in enumerate(kinds)}


@pytest.mark.parametrize("seed", range(12))
def test_what_is_counted_on_the_way_is_what_is_there(manager: Any, seed: int) -> None:
    rng = random.Random(seed)
    counts(manager)
    texts = [list(range(start, start + 700)) for start in (0, 1000, 2000)]
    under_way: list[Any] = []
    for number in range(400):
        if rng.random() < 0.3 and len(under_way) < 6:
            request = asked(f"r{number}", rng.choice(texts)[: rng.randint(1, 700)])
            found, length, *_ = manager.get_computed_blocks(request)
            if manager.allocate_slots(request, request.num_tokens - length, length, found) is not None:
                request.status = running()
                request.num_computed_tokens = request.num_tokens
                under_way.append(request)
        for request in list(under_way):
            request.append_output_token_ids(rng.randint(0, 3))
            if rng.random() < 0.04 or manager.allocate_slots(request, 1) is None:
                manager.free(request)
                under_way.remove(request)
            else:
                request.num_computed_tokens += 1
        assert {kind: parts[:2] for kind, parts in counts(manager).items()} == walked(manager)
        if number % 150 == 149:
            for request in under_way:
                manager.free(request)
            under_way = []
            assert manager.reset_prefix_cache()
    assert sum(cached for _, cached in walked(manager).values())


def test_a_count_does_not_go_through_the_pages(manager: Any) -> None:
    counter = counter_of(manager)
    assert manager.allocate_slots(new_request("a", 640), 640)
    manager.block_pool.blocks = None  # whoever looks at them fails
    assert [group.used for group in counter.count()] == [20, 20]


@pytest.mark.parametrize("steps", [1, 3, 16])
@pytest.mark.parametrize("length", [31, 32, 33, 300])
def test_passing_over_allocations_within_a_page_changes_none_of_the_others(
    vllm_ignoring_warnings: None, steps: int, length: int
) -> None:
    from engine.vllm_internals.kv_cache_manager import PageRoomManager

    plain, quick = new_manager(), new_manager()
    PageRoomManager.take_over(quick)
    requests = [(plain, new_request("a", length)), (quick, new_request("a", length))]
    new_pages: list[list[Any]] = [[], []]
    for manager, request in requests:
        assert manager.allocate_slots(request, length)
        request.status = running()
        request.num_computed_tokens = length
        request.append_output_token_ids(1)
    for round_ in range(200 // steps):
        for number, (manager, request) in enumerate(requests):
            pages = manager.allocate_slots(request, steps)
            new_pages[number].append(pages.get_block_ids(allow_none=True))
            request.num_computed_tokens += steps
            request.append_output_token_ids([round_ * 16 + step for step in range(steps)])
        (plain_used, *_), (quick_used, *_) = (counts(one)["sliding"] for one, _ in requests)
        assert plain_used <= quick_used <= plain_used + 1  # given back with the next page
        assert counts(plain)["global"][0] == counts(quick)["global"][0]
    assert new_pages[0] == new_pages[1]
    follow_up = list(requests[0][1].all_token_ids)
    for manager, request in requests:
        manager.free(request)
    found = [one.get_computed_blocks(asked("b", follow_up))[1] for one in (plain, quick)]
    assert found[0] <= found[1] == (len(follow_up) - 1) // PAGE * PAGE  # also what the last steps filled


def test_a_page_room_ends_with_its_request(vllm_ignoring_warnings: None) -> None:
    from engine.vllm_internals.kv_cache_manager import PageRoomManager

    manager = new_manager()
    PageRoomManager.take_over(manager)
    for _ in range(2):  # the same id again, as after a preemption: it has no pages any more
        request = new_request("a", 40)
        assert manager.allocate_slots(request, 40).get_block_ids(allow_none=True) is not None
        request.status = running()
        request.num_computed_tokens = 40
        request.append_output_token_ids(1)
        assert manager.allocate_slots(request, 1).get_block_ids(allow_none=True) is None
        manager.free(request)


def test_a_sliding_window_needs_no_more_pages_however_long_the_request(manager: Any) -> None:
    """What vLLM itself reckons for the longest request; a batch of 64 tokens beside the window's 127."""
    from engine.messages import PageNeed
    from engine.vllm_internals.page_counter import PageCounter

    parallel = SimpleNamespace(decode_context_parallel_size=1, prefill_context_parallel_size=1)
    longest = SimpleNamespace(max_model_len=4096)
    config = SimpleNamespace(max_in_flight_tokens=64, model_config=longest, parallel_config=parallel)
    scheduler = SimpleNamespace(kv_cache_manager=manager, vllm_config=config, _preempt_request=None)
    core = SimpleNamespace(scheduler=scheduler)
    assert PageCounter(core).needs() == (
        PageNeed(PAGE, most=-(-(127 + 64) // PAGE) + 1),
        PageNeed(PAGE, most=4096 // PAGE),
    )
