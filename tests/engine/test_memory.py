"""What the engine process holds of the machine's memory."""

import re
from pathlib import Path

from server.process_engine_client import ProcessEngineClient

CACHE = 256 << 20
"""Bytes of the shared engine's KV cache."""
# Of no file: libraries are mapped too, and one of them may be as large.
_MAPPING = re.compile(
    r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ 0 *\S*\nSize: +(\d+) kB.*?^Rss: +(\d+) kB", re.MULTILINE | re.DOTALL
)


def mappings(pid: int | None) -> list[tuple[int, int]]:
    """Bytes of each anonymous mapping of a process, and how many of them are in memory."""
    text = Path(f"/proc/{pid}/smaps").read_text()
    return [(int(size) << 10, int(held) << 10) for size, held in _MAPPING.findall(text)]


async def test_the_kv_cache_takes_memory_only_as_it_fills(engine: ProcessEngineClient) -> None:
    caches = [held for size, held in mappings(engine.pid) if 0.9 * CACHE < size <= CACHE + (4 << 20)]
    assert len(caches) == 1
    assert caches[0] < CACHE // 2
