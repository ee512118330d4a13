"""Our kernels for CPUs (`kernels/*.cpp`) as a loaded library: compiled where the engine first needs them, then cached.

A compiler is there wherever vLLM's CPU build compiles. Where it is not, or the CPU lacks what the kernels are written
for, there is a line in the log and the caller goes vLLM's way. `packed`, `fused`, `prefill` and `decode` beside it
compute with it, and `model_impl/sampling`. Products with weights in 8 or 4 bits (`quantized`) run on every x86-64.
Training has kernels of its own, which load like these.
"""

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

logger = logging.getLogger(__name__)

Arguments = Mapping[str, list[type]]
"""Of each function of a library."""

SOURCES = Path(__file__).parent / "kernels"
SWITCH = "TWOGEAR_KERNELS"
"""The environment variable that leaves them out when it is 0."""
AHEAD = "compile-kernels"
"""The name of the thread that `compile_ahead` starts."""

_CPU_FLAGS = ("avx512f", "avx512bw", "avx512vl", "avx512_bf16", "fma")  # as /proc/cpuinfo calls them
_COMPILE = (
    *("g++", "-O3", "-std=c++17", "-shared", "-fPIC", "-fopenmp", "-mprefer-vector-width=512"),
    *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512bf16", "-mfma"),
)
_COMPILE_SECONDS = 120
_compiling = threading.Lock()
_SIZE, _POINTER, _FLOAT = ctypes.c_int64, ctypes.c_void_p, ctypes.c_float
_ARGUMENTS: Arguments = {
    "packed_size": [_POINTER, _SIZE, _SIZE],
    "use_tiles": [ctypes.c_bool],
    "pack": [_POINTER, _SIZE, _SIZE, _POINTER],
    "packed_lookup": [_POINTER, _POINTER, _SIZE, _POINTER],
    "linear": [_POINTER, _SIZE, _SIZE, _SIZE, _POINTER, _SIZE, _POINTER, _POINTER],
    "add_norm": [_POINTER, _POINTER, _POINTER, _FLOAT, _SIZE, _SIZE, _POINTER],
    "norm_rope": [_POINTER, *[_SIZE] * 5, _POINTER, _POINTER, _FLOAT, _POINTER, _POINTER],
    "silu_mul": [_POINTER, _SIZE, _SIZE, _POINTER],
    "attend": [
        *(_POINTER, _SIZE, _POINTER, _SIZE, _POINTER, _SIZE, _SIZE, _SIZE, _SIZE, _POINTER, _SIZE, _POINTER, _POINTER),
        *(_SIZE, _SIZE, _SIZE, _SIZE, _FLOAT, _SIZE),
    ],
    "keep_tokens": [_POINTER, _SIZE, _POINTER, _SIZE, _POINTER, _SIZE, _POINTER, *[_SIZE] * 4],
    "draw": [_POINTER, _POINTER, _SIZE, _SIZE, *[_POINTER] * 6],
    "decode_step": [_POINTER, _POINTER, _SIZE, _SIZE, _POINTER, _POINTER, _POINTER],
}
_RESULTS: dict[str, type] = {"packed_size": _SIZE, "use_tiles": ctypes.c_bool, "linear": ctypes.c_bool}

QUANTIZED = ("quantize.cpp", "quantized.cpp", "restored.cpp")
"""The sources of products with weights in 8 or 4 bits, which can be compiled for any x86-64."""
_VECTORS = ("avx512_vnni", "-mavx512vnni")
"""What those like to have beside the instructions of the others, and how the compiler is told."""
_COMPILE_FOR_ANY = ("g++", "-O3", "-std=c++17", "-shared", "-fPIC", "-fopenmp", "-march=native")
_QUANTIZED_ARGUMENTS: Arguments = {
    "quantized_size": [_SIZE, _SIZE, _SIZE],
    "quantize": [_POINTER, _SIZE, _SIZE, _SIZE, _POINTER],
    "pack_quantized": [_POINTER, _POINTER, _POINTER, _SIZE, _SIZE, _SIZE, _SIZE, _POINTER],
    "quantized_linear": [_POINTER, _SIZE, _SIZE, _SIZE, _POINTER, _SIZE, _POINTER, _POINTER],
    "quantized_lookup": [_POINTER, _POINTER, _SIZE, _POINTER],
    "quantized_by": [_SIZE],
}
_QUANTIZED_RESULTS: dict[str, type] = {
    "quantized_size": _SIZE,
    "quantize": ctypes.c_bool,
    "quantized_linear": ctypes.c_bool,
    "quantized_by": _SIZE,
}


class KernelsUnavailableError(RuntimeError):
    """Why there are no kernels of ours on this machine."""


@functools.cache
def kernels() -> ctypes.CDLL | None:
    """The library, or None where it is switched off or cannot be had, which is then logged, once."""
    return if_available(load, "vLLM's")


@functools.cache
def quantized_kernels() -> ctypes.CDLL:
    """The functions for weights in 8 or 4 bits, of the library where there is one, else compiled apart for this CPU.

    Raises:
        KernelsUnavailableError: no compiler, or nowhere to keep what it makes.
    """
    try:
        path = _compiled(SOURCES)
    except KernelsUnavailableError:
        flags = cpu_flags()
        of_cpu = f"-DCPU={hashlib.sha256(' '.join(sorted(flags)).encode()).hexdigest()[:8]}"  # a cache may see several
        path = _made((*_COMPILE_FOR_ANY, of_cpu), SOURCES, (SOURCES,), QUANTIZED)
    return _opened(path, _QUANTIZED_ARGUMENTS, _QUANTIZED_RESULTS)


def why_no_kernels() -> str:
    """Where `kernels` gives none: why, in words."""
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH} is 0"
    try:
        load()
    except KernelsUnavailableError as error:
        return str(error)
    return "there were no kernels"


def if_available(load: Callable[[], ctypes.CDLL], otherwise: str) -> ctypes.CDLL | None:
    """What `load` gives, or None where kernels are switched off or cannot be had; the log says whose operations run."""
    if os.environ.get(SWITCH) == "0":
        return None
    try:
        return load()
    except KernelsUnavailableError as error:
        logger.warning("%s own CPU operations on this machine: %s", otherwise, error)
        return None


def compile_ahead() -> None:
    """Compiles the library in a thread, so that `kernels` finds it or waits for less; g++ needs no interpreter.

    Only where the environment asks for kernels, as our defaults for a CPU do. A failure shows when `kernels` is called.
    """
    if os.environ.get(SWITCH, "0") != "0":
        threading.Thread(target=_compile_quietly, name=AHEAD, daemon=True).start()


def _compile_quietly() -> None:
    with contextlib.suppress(KernelsUnavailableError):
        _compiled(SOURCES)


def load(compiler: str = _COMPILE[0]) -> ctypes.CDLL:
    """The library, compiled if no earlier start did. It shares the OpenMP threads of torch, which is loaded before.

    Raises:
        KernelsUnavailableError: another CPU, no compiler, or nowhere to keep what it makes.
    """
    return load_from(SOURCES, _ARGUMENTS, _RESULTS, compiler=compiler)


def load_from(
    sources: Path,
    arguments: Arguments,
    results: Mapping[str, type],
    *,
    headers: tuple[Path, ...] = (),
    compiler: str = _COMPILE[0],
) -> ctypes.CDLL:
    """As `load`, of another folder of sources, which may include what is in the folders `headers`.

    Functions that are not in `results` return nothing.

    Raises:
        KernelsUnavailableError: another CPU, no compiler, or nowhere to keep what it makes.
    """
    path = _compiled(sources, headers=headers, compiler=compiler)
    return _opened(path, arguments, results)


def _opened(path: Path, arguments: Arguments, results: Mapping[str, type]) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise KernelsUnavailableError(f"{error}") from error
    for name, types in arguments.items():
        function = getattr(library, name)
        function.argtypes = types
        function.restype = results.get(name)
    return library


def _compiled(sources: Path, *, headers: tuple[Path, ...] = (), compiler: str = _COMPILE[0]) -> Path:
    """The library's file, made if no earlier start did. Raises KernelsUnavailableError."""
    information = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    _check_cpu(information)
    vectors = _VECTORS[1:] if _VECTORS[0] in _flags(information) else ()
    command = (compiler, *_COMPILE[1:], *vectors, *(f"-I{folder}" for folder in headers))
    return _made(command, sources, (sources, *headers))


def _made(
    command: tuple[str, ...], sources: Path, read: tuple[Path, ...], names: tuple[str, ...] | None = None
) -> Path:
    """The library of those sources, or all; `read`: the folders that decide what it is."""
    try:
        path = cache_folder() / f"kernels-{_fingerprint(command, read)}.so"
        with _compiling:
            if not path.exists():
                _compile(command, [sources / name for name in names] if names else sorted(sources.glob("*.cpp")), path)
    except OSError as error:
        raise KernelsUnavailableError(f"{error}") from error
    return path


def cache_folder() -> Path:
    """Where compiled kernels are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "twogear" / "kernels"


def _check_cpu(information: str) -> None:
    """Of /proc/cpuinfo's text: whether the kernels run here."""
    flags = _flags(information)
    missing = [flag for flag in _CPU_FLAGS if flag not in flags]
    if missing:
        raise KernelsUnavailableError(f"ours need {', '.join(missing)}, which this CPU has not")


def cpu_flags() -> set[str]:
    """What this machine's CPU has, as /proc/cpuinfo calls it."""
    return _flags(Path("/proc/cpuinfo").read_text(encoding="utf-8"))


def _flags(information: str) -> set[str]:
    line = next((line for line in information.splitlines() if line.startswith("flags")), "")
    return set(line.partition(":")[2].split())


def _fingerprint(command: tuple[str, ...], folders: tuple[Path, ...]) -> str:
    """Of all that decides what the library is."""
    digest = hashlib.sha256(" ".join(command).encode())
    for folder in folders:
        for source in sorted(folder.iterdir()):
            digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _compile(command: tuple[str, ...], sources: list[Path], path: Path) -> None:
    """Makes the library at `path`; of several processes that do so at once, each leaves a whole one there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        arguments = [*command, *map(str, sources), "-o", str(made)]
        try:
            subprocess.run(arguments, check=True, capture_output=True, text=True, timeout=_COMPILE_SECONDS)
        except FileNotFoundError as error:
            raise KernelsUnavailableError(f"ours need a compiler, and there is no {command[0]}") from error
        except subprocess.TimeoutExpired as error:
            raise KernelsUnavailableError(f"{command[0]} took more than {_COMPILE_SECONDS} s for ours") from error
        except subprocess.CalledProcessError as error:
            reason = next((line for line in error.stderr.splitlines() if "error" in line), error.stderr[-200:])
            raise KernelsUnavailableError(f"{command[0]} failed on ours: {reason}") from error
        made.rename(path)
