"""How each server is started: its command line and its environment.

All take the same chat requests under the same path. `caches` is a folder that is empty at a server's first start in a
benchmark; later starts find what the one before has left there.
"""

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.load.workload import MODEL_NAME
from benchmarks.peers import llama_cpp

_TEMPLATE = Path(__file__).parent / "chat_template.jinja"
_TWOGEAR = Path(sys.executable).parent / "twogear"
_QUIET = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "PYTHONUNBUFFERED": "1"}
_LLAMA_CPP_SLOTS = {"embedded": (128, 65536), "large": (32, 16384)}
"""Slots, and tokens of context that they share: enough for every load."""


@dataclass(frozen=True)
class Start:
    """A process to start; `environment` is added to the present one."""

    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """What is served, and where; `model` is `embedded` or `large`."""

    model: str
    checkpoint: Path
    port: int
    caches: Path


def twogear(target: Target) -> Start:
    """Ours, as `twogear serve` starts it."""
    place = ("--port", str(target.port), "--served-model-name", MODEL_NAME)
    return Start((str(_TWOGEAR), "serve", str(target.checkpoint), *place), _caches(target))


def vllm_default(target: Target) -> Start:
    """The server of vLLM with its defaults and its own model class."""
    command = (
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1"),
        *("--port", str(target.port), "--model", str(target.checkpoint), "--served-model-name", MODEL_NAME),
        *("--chat-template", str(_TEMPLATE), "--reasoning-parser", "qwen3"),
    )
    own = {
        "VLLM_PLUGINS": "",  # set but empty: ours is not loaded
        # By default it starts only if 92 % of the memory is free. This is more than any load fills.
        "VLLM_CPU_KVCACHE_SPACE": "4",
    }
    return Start(command, {**_caches(target), **own})


def vllm_tuned(target: Target) -> Start:
    """The same with the best environment: all cores, the worker inside the engine, without the cache that fails."""
    start = vllm_default(target)
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    tuning = {
        "VLLM_CPU_OMP_THREADS_BIND": cores,
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_USE_AOT_COMPILE": "0",
    }
    return Start(start.command, {**start.environment, **tuning})


def llama_server(target: Target) -> Start:
    """llama.cpp's server at bf16, with a slot for every stream. Raises UsageError if it cannot be built."""
    slots, context = _LLAMA_CPP_SLOTS[target.model]
    command = (
        *(str(llama_cpp.build()), "--host", "127.0.0.1", "--port", str(target.port)),
        *("--model", str(llama_cpp.gguf(target.checkpoint, target.model)), "--alias", MODEL_NAME),
        *("--jinja", "--chat-template-file", str(_TEMPLATE)),
        *("--threads", str(len(os.sched_getaffinity(0))), "--parallel", str(slots)),
        *("--ctx-size", str(context), "--kv-unified"),
    )
    return Start(command)


def _caches(target: Target) -> dict[str, str]:
    """Variables that put all caches, Python's bytecode included, into the benchmark's own folder."""
    return {
        **_QUIET,
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONPYCACHEPREFIX": str(target.caches / "bytecode"),
        "XDG_CACHE_HOME": str(target.caches),
        "VLLM_CACHE_ROOT": str(target.caches / "vllm"),
        "TORCHINDUCTOR_CACHE_DIR": str(target.caches / "inductor"),
        "TRITON_CACHE_DIR": str(target.caches / "triton"),
    }


SERVERS: Mapping[str, Callable[[Target], Start]] = {
    "twogear": twogear,
    "vllm": vllm_default,
    "vllm-tuned": vllm_tuned,
    "llama.cpp": llama_server,
}
