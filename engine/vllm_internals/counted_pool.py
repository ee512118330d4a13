"""vLLM's pool of pages, which counts as it goes how many are held and how many are kept for others, by kind.

So the counts cost the same with a hundred pages and with millions. Every page changes hands in one of these methods; in
what they do, they are vLLM's own.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import KVCacheBlock, get_group_id


class CountedPool(BlockPool):
    """`held`: pages of each kind that requests hold, shared ones once. `idle`: that nobody holds and that a request
    with the same beginning finds.
    """

    held: Counter[str]
    idle: Counter[str]
    _kinds: list[str]
    _kind_of: bytearray

    @classmethod
    def take_over(cls, pool: BlockPool, managers: Sequence[Any], kinds: Sequence[str]) -> "CountedPool":
        """Turns vLLM's pool into this one. `kinds`: of the pages of each of the managers that take them."""
        pool.__class__ = cls
        counted: Any = pool
        counted._kinds, counted._kind_of = list(kinds), bytearray(pool.num_gpu_blocks)
        counted.held, counted.idle = Counter(), Counter()
        counted._count_all(managers)
        for number, manager in enumerate(managers):
            for name in ("allocate_new_blocks", "allocate_external_computed_blocks"):
                setattr(manager, name, counted._noting(getattr(manager, name), manager, number))
        return counted  # type: ignore[no-any-return]

    def _count_all(self, managers: Sequence[Any]) -> None:
        """What is there before it counts: where the engine is new, nothing."""
        for number, manager in enumerate(managers):
            for blocks in manager.req_to_blocks.values():
                self._take(number, blocks)
        if len(self.cached_block_hash_to_block):
            kept = (block for block in self.blocks if block.ref_cnt == 0 and block.block_hash is not None)
            self.idle.update(self._kind_by_hash(block) for block in kept)

    def _noting(self, allocate: Callable[..., Any], manager: Any, number: int) -> Callable[..., Any]:
        """`allocate` of a manager; the pages that it appends to a request are the manager's."""
        blocks_of = manager.req_to_blocks

        def noted(request_id: str, *args: Any, **kwargs: Any) -> Any:
            before = len(blocks_of[request_id]) if request_id in blocks_of else 0
            result = allocate(request_id, *args, **kwargs)
            blocks = blocks_of[request_id]
            if len(blocks) != before:
                self._take(number, blocks[before:])
            return result

        return noted

    def _take(self, number: int, blocks: Iterable[KVCacheBlock]) -> None:
        """Pages of the pool are a manager's now. One that it held before, or another shares, is counted already."""
        for block in blocks:
            if not block.is_null and not self._kind_of[block.block_id]:
                self._kind_of[block.block_id] = number + 1
                self.held[self._kinds[number]] += 1

    def touch(self, blocks: Sequence[KVCacheBlock]) -> None:
        """As vLLM's: pages that are found are held, and no longer kept."""
        for block in blocks:
            if block.ref_cnt == 0 and not block.is_null and block.block_hash is not None:
                self.idle[self._kind_by_hash(block)] -= 1
                self._take(get_group_id(block.block_hash), [block])
        super().touch(blocks)

    def free_blocks(self, ordered_blocks: Iterable[KVCacheBlock]) -> None:
        """As vLLM's."""
        blocks = list(ordered_blocks)
        super().free_blocks(blocks)
        self._leave(blocks)

    def unpin_blocks(self, blocks: Iterable[KVCacheBlock], on_reuse: Callable[[KVCacheBlock], None]) -> None:
        """As vLLM's."""
        blocks = list(blocks)
        super().unpin_blocks(blocks, on_reuse)
        self._leave(blocks)

    def _leave(self, blocks: Iterable[KVCacheBlock]) -> None:
        for block in blocks:
            if block.ref_cnt == 0 and (number := self._kind_of[block.block_id]):
                self._kind_of[block.block_id] = 0
                self.held[self._kinds[number - 1]] -= 1
                if block.block_hash is not None:
                    self.idle[self._kind_by_hash(block)] += 1

    def _insert_block_hash(self, key: Any, block: KVCacheBlock, num_tokens: int | None) -> None:
        is_new = block.block_hash is None and block.ref_cnt == 0
        super()._insert_block_hash(key, block, num_tokens)
        if is_new and block.block_hash is not None:
            self.idle[self._kind_by_hash(block)] += 1

    def _remove_cached_block_hashes(self, block: KVCacheBlock) -> Any:
        if block.ref_cnt == 0 and block.block_hash is not None:
            self.idle[self._kind_by_hash(block)] -= 1
        return super()._remove_cached_block_hashes(block)

    def reset_prefix_cache(self) -> bool:
        """As vLLM's."""
        is_reset = super().reset_prefix_cache()
        if is_reset:
            self.idle.clear()
        return is_reset

    def _kind_by_hash(self, block: KVCacheBlock) -> str:
        return self._kinds[get_group_id(block.block_hash)]  # type: ignore[arg-type]
