"""What the engine process holds of the machine's memory."""

import contextlib
import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import transformers

from server.process_engine_client import ProcessEngineClient
from server.settings import EMBEDDED_MODEL

ROOT = Path(__file__).parents[2]

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


_FREES_ALL_BUT_THE_LAST = """
from pathlib import Path
from engine.heap import return_free_memory

def held():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

pieces = [b"x" * (64 << 10) for _ in range(1600)]
del pieces[:-1]
before = held()
return_free_memory()
print(before - held())
"""


def test_what_is_free_below_what_is_used_goes_back_to_the_machine() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FREES_ALL_BUT_THE_LAST], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert int(done.stdout) > 80 << 20


@pytest.mark.parametrize("alone", [True, False])
def test_a_renderer_has_one_tokenizer(alone: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from vllm.renderers.hf import HfRenderer

        from engine.vllm_internals.one_tokenizer import one_tokenizer
    model = SimpleNamespace(renderer_num_workers=1, supports_multimodal_inputs=False, hf_config=None)
    config: Any = SimpleNamespace(model_config=model, parallel_config=SimpleNamespace(_api_process_rank=0))
    tokenizer = transformers.AutoTokenizer.from_pretrained(EMBEDDED_MODEL)
    with one_tokenizer() if alone else contextlib.nullcontext():
        renderer = HfRenderer(config, tokenizer)
    assert (type(renderer.get_tokenizer()) is type(tokenizer)) == alone
