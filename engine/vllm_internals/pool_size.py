"""How large a KV cache is worth having: a small model fills no GPU with pages.

vLLM takes what memory a GPU has. It keeps an object of Python's for each page, so that the millions of pages of a small
model cost seconds of its start and gigabytes of the host's memory, and nobody else can use the GPU.
"""

from collections.abc import Iterable
from typing import Any

from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec


def most_bytes(specs: Iterable[Any], tokens: int) -> int | None:
    """What keys and values of so many tokens take in all layers, by vLLM's specs of the layers of one worker; None
    where a layer keeps something else, which does not grow by the token.
    """
    specs = list(specs)
    if not specs or any(type(spec) not in {FullAttentionSpec, SlidingWindowSpec} for spec in specs):
        return None
    return sum(-(-tokens // int(spec.block_size)) * int(spec.page_size_bytes) for spec in specs)
