"""What the front end is told of vLLM's scheduler and KV cache: requests running, waiting, set back; pages per kind.

vLLM's own statistics know one number for the whole cache. How much of it sliding windows and global layers hold is
visible only in the block pool and the managers per KV cache group. Works with every executor, since the scheduler lives
in this process whatever the workers do.
"""

from typing import Any

from vllm.v1.kv_cache_interface import get_kv_cache_spec_sliding_window

from engine.messages import PageGroup, PageNeed
from engine.vllm_internals.counted_pool import CountedPool

SLIDING, GLOBAL = "sliding", "global"


class PageCounter:
    """Reads what the pool counts as it goes (`counted_pool.py`).

    `core`: vLLM's EngineCore, in this process.
    """

    def __init__(self, core: Any) -> None:
        self._core = core
        self._scheduler = core.scheduler
        manager = core.scheduler.kv_cache_manager
        self._preemptions = 0
        self._count_preemptions()
        self._managers = manager.coordinator.single_type_managers
        self._kinds = [
            GLOBAL if get_kv_cache_spec_sliding_window(manager.kv_cache_spec) is None else SLIDING
            for manager in self._managers
        ]
        self._pool = CountedPool.take_over(manager.block_pool, self._managers, self._kinds)

    def has_work(self) -> bool:
        """Whether a step would do anything.

        LLMEngine knows of unfinished requests only; after an abort the workers still have to hear of it, and a batch
        that was queued ahead still has to come back.
        """
        return bool(self._scheduler.has_requests() or self._core.batch_queue)

    def requests(self) -> tuple[int, int]:
        """How many requests run and how many wait."""
        running, waiting = self._scheduler.get_request_counts()
        return running, waiting

    def progress(self) -> object:
        """How far each request that runs has been computed."""
        return [(request.request_id, request.num_computed_tokens) for request in self._scheduler.running]

    def preemptions(self) -> int:
        """How often a request has lost its pages to others, since the engine's start."""
        return self._preemptions

    def _count_preemptions(self) -> None:
        """Without vLLM's statistics, which cost time for every token, nothing else tells of them."""
        preempt = self._scheduler._preempt_request

        def counted(*args: Any, **kwargs: Any) -> None:
            self._preemptions += 1
            preempt(*args, **kwargs)

        self._scheduler._preempt_request = counted

    def count(self) -> tuple[PageGroup, ...]:
        """Pages by kind.

        used: held by requests, a page shared by several counted once. cached: held by nobody, but found again by a
        request with the same beginning, until it is overwritten. free: empty. One pool serves both kinds, so `free` is
        the same number in each, and all used, all cached and one `free` make up the pool.
        """
        cached = self._pool.idle
        in_use = self._pool.num_gpu_blocks - 1 - self._pool.get_num_free_blocks()  # less the null block
        used = {SLIDING: self._pool.held[SLIDING], GLOBAL: in_use - self._pool.held[SLIDING]}
        free = self._pool.get_num_free_blocks() - sum(cached.values())
        return tuple(
            PageGroup(group=kind, page_size=self._page_size(kind), used=used[kind], cached=cached[kind], free=free)
            for kind in (SLIDING, GLOBAL)
            if kind in self._kinds
        )

    def needs(self) -> tuple[PageNeed, ...]:
        """By vLLM's own figure for a request of the longest context; a window's does not grow with the request."""
        config = self._scheduler.vllm_config
        specs = [manager.kv_cache_spec for manager in self._managers]
        most = [int(spec.max_memory_usage_bytes(config) // spec.page_size_bytes) for spec in specs]
        return tuple(
            PageNeed(page_size=int(manager.block_size), most=number)
            for manager, number in zip(self._managers, most, strict=True)
        )

    def _page_size(self, kind: str) -> int:
        """In tokens."""
        return int(self._managers[self._kinds.index(kind)].block_size)
