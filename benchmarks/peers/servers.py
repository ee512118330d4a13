"""How each server is started: its command line and its environment.

All take the same chat requests under the same path. `caches` is a folder that is empty at a server's first start in a
benchmark; later starts find what the one before has left there.
"""

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path

from benchmarks.load.checkpoints import cache_folder
from benchmarks.load.workload import MODEL_NAME
from benchmarks.peers import llama_cpp
from model_impl.weights import DEFAULT
from server.cli_errors import UsageError

_TEMPLATE = Path(__file__).parent / "chat_template.jinja"
_TWOGEAR = Path(sys.executable).parent / "twogear"
_QUIET = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "PYTHONUNBUFFERED": "1"}
_LLAMA_CPP_SLOTS = {"embedded": (128, 33 * 1024), "large": (32, 2560)}
"""Slots, and tokens of context that each has: enough for every load."""
_RUST_FRONTEND = "VLLM_RUST_FRONTEND_PATH"
"""As vLLM calls it: where its front end in Rust lies, which comes with its wheel for CUDA alone."""


@dataclass(frozen=True)
class Start:
    """A process to start; `environment` is added to the present one."""

    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """What is served, and where; `model` is `embedded` or `large`. `streams`: at most; None for any suite."""

    model: str
    checkpoint: Path
    port: int
    caches: Path
    streams: int | None = None


def twogear(target: Target, weights: str = DEFAULT) -> Start:
    """Ours, as `twogear serve` starts it but for the format of its weights: other servers' are bfloat16 too."""
    place = ("--port", str(target.port), "--served-model-name", MODEL_NAME, "--weights", weights)
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


def vllm_rust(target: Target) -> Start:
    """The tuned one behind vLLM's front end in Rust, which the environment has to name; its engine is a process apart.

    Raises UsageError.
    """
    binary = os.environ.get(_RUST_FRONTEND)
    if binary is None or not os.access(binary, os.X_OK):
        raise UsageError(f"{_RUST_FRONTEND} must name vLLM's front end in Rust, a file of its wheel for CUDA")
    start = vllm_tuned(target)
    own = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_USE_RUST_FRONTEND": "1", _RUST_FRONTEND: binary}
    own |= named_vllm()
    # `vllm serve` alone knows it: the module of the server in Python starts that one, whatever the environment says.
    python, flag, _, *options = start.command
    return Start((python, flag, "vllm.entrypoints.cli.main", "serve", *options), {**start.environment, **own})


def named_vllm() -> dict[str, str]:
    """Variables with which `vllm serve` starts: it asks for a package `vllm`, whose version says that it is for CPUs.
    That package's name is `vllm-cpu`.
    """
    with suppress(metadata.PackageNotFoundError):
        metadata.version("vllm")
        return {}
    version = f"{metadata.version('vllm-cpu')}+cpu"
    folder = cache_folder() / "vllm-by-its-name"
    info = folder / f"vllm-{version}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))}


def llama_server(target: Target, weights: str | None = None) -> Start:
    """llama.cpp's server at bf16, or with weights as it names them, and a slot for every stream.

    Each slot has pages of its own: with pages that all share (`--kv-unified`) a step looks at those of all streams.
    Past prompts are not kept (up to 8 GiB by default): none comes a second time.
    Raises UsageError if it cannot be built.
    """
    slots, context = _LLAMA_CPP_SLOTS[target.model]
    slots = target.streams or slots
    model = (target.checkpoint, target.model)
    file = llama_cpp.gguf(*model) if weights is None else llama_cpp.quantized_gguf(*model, weights)
    command = (
        *(str(llama_cpp.build()), "--host", "127.0.0.1", "--port", str(target.port)),
        *("--model", str(file), "--alias", MODEL_NAME),
        *("--jinja", "--chat-template-file", str(_TEMPLATE)),
        *("--threads", str(len(os.sched_getaffinity(0))), "--parallel", str(slots)),
        *("--ctx-size", str(slots * context), "--no-kv-unified", "--cache-ram", "0"),
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
"""Those that a suite takes if it is told nothing."""
OTHERS: Mapping[str, Callable[[Target], Start]] = {
    "twogear-int8": partial(twogear, weights="int8"),
    "twogear-int4": partial(twogear, weights="int4"),
    "llama.cpp-q8_0": partial(llama_server, weights="Q8_0"),
    "llama.cpp-q4_k_m": partial(llama_server, weights="Q4_K_M"),
    "vllm-rust": vllm_rust,
}
"""Those that are named with `--servers`."""
