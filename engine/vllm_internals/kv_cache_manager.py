"""Passes over vLLM's allocation of pages while a decoding request stays within those it has.

vLLM goes through all groups of pages for every request and token: what left a window, what a page lacks, what is full
and can be found by others. All of it changes once in a page. What a window gave up is returned with the next page, too.
"""

import math
from typing import Any, NamedTuple

from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
from vllm.v1.request import Request, RequestStatus


class _Place(NamedTuple):
    """Pages behind the last token that has a slot, and pages full of known tokens."""

    slots: int
    full: int


class PageRoomManager(KVCacheManager):
    """vLLM's manager, quick for a request that decodes and whose place is the one of its last allocation."""

    _places: dict[str, _Place]
    _page: int

    @classmethod
    def take_over(cls, manager: KVCacheManager) -> None:
        """Turns vLLM's manager into this one: the scheduler names no class for it."""
        manager.__class__ = cls
        manager._places = {}  # type: ignore[attr-defined]
        sizes = (one.block_size for one in manager.coordinator.single_type_managers)
        manager._page = math.gcd(*sizes)  # type: ignore[attr-defined]

    def allocate_slots(self, request: Request, num_new_tokens: int, *args: Any, **kwargs: Any) -> KVCacheBlocks | None:
        """As vLLM's: the new pages, or None where there are too few."""
        end = request.num_computed_tokens + num_new_tokens
        place = _Place(-(-end // self._page), min(end, request.num_tokens) // self._page)
        # What the prompt's tokens needed before the window is given back with the first token after them.
        decodes = request.status == RequestStatus.RUNNING and request.num_tokens == request.num_computed_tokens + 1
        if decodes and self._places.get(request.request_id) == place and not kwargs.get("num_lookahead_tokens"):
            return self.empty_kv_cache_blocks
        self._places.pop(request.request_id, None)
        blocks = super().allocate_slots(request, num_new_tokens, *args, **kwargs)
        if blocks is not None and decodes:
            self._places[request.request_id] = place
        return blocks

    def free(self, request: Request) -> None:
        """As vLLM's."""
        self._leave(request)
        super().free(request)

    def pop_blocks_for_free(self, request: Request) -> list[Any]:
        """As vLLM's."""
        self._leave(request)
        return super().pop_blocks_for_free(request)

    def _leave(self, request: Request) -> None:
        """Several steps may have filled a page since the last allocation: it is to be found by what follows, too."""
        if self._places.pop(request.request_id, None) is not None:
            self.cache_blocks(request, min(request.num_computed_tokens, request.num_tokens))
