"""Training's kernels for CPUs (`kernels/*.cpp`) as a loaded library, compiled and cached as those of `model_impl`.

Large products are PyTorch's, with a CPU's matrix unit where it has one: 2.8 to 4.9 times as many tokens a second as
without these kernels on a Xeon with AMX (docs/log.md).
"""

import ctypes
import functools
from pathlib import Path

from model_impl.cpu import native

SOURCES = Path(__file__).parent / "kernels"

_SIZE, _POINTER, _FLOAT = ctypes.c_int64, ctypes.c_void_p, ctypes.c_float
_ARGUMENTS: native.Arguments = {
    "attention_forward": [*[_POINTER, _SIZE] * 3, *[_POINTER] * 3, *[_SIZE] * 5, _FLOAT, _SIZE],
    "attention_backward": [
        *([_POINTER, _SIZE] * 3 + [_POINTER] * 4 + [_POINTER, _SIZE] * 3),
        *(*[_SIZE] * 5, _FLOAT, _SIZE),
    ],
    "norm_rope_forward": [_POINTER, *[_SIZE] * 5, _POINTER, _POINTER, _FLOAT, _POINTER, _SIZE, _POINTER],
    "norm_rope_backward": [_POINTER, *[_SIZE] * 5, _POINTER, _POINTER, _FLOAT, _POINTER, _SIZE, _POINTER, _POINTER],
    "add_norm_forward": [_POINTER, _POINTER, _POINTER, _FLOAT, _SIZE, _SIZE, _POINTER, _POINTER, _POINTER],
    "add_norm_backward": [*[_POINTER] * 5, _SIZE, _SIZE, _POINTER, _POINTER, _POINTER],
    "swiglu_forward": [_POINTER, _SIZE, _SIZE, _POINTER],
    "swiglu_backward": [_POINTER, _POINTER, _SIZE, _SIZE, _POINTER, _POINTER],
}
_RESULTS: dict[str, type] = {}


@functools.cache
def kernels() -> ctypes.CDLL | None:
    """The library, or None where it is switched off or cannot be had, which is then logged, once."""
    return native.if_available(load, "PyTorch's")


def load() -> ctypes.CDLL:
    """The library, compiled if no earlier start did. It shares the OpenMP threads of torch, which is loaded before.

    Raises:
        KernelsUnavailableError: another CPU, no compiler, or nowhere to keep what it makes.
    """
    return native.load_from(SOURCES, _ARGUMENTS, _RESULTS, headers=(native.SOURCES,))
