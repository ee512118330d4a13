"""Demand-zero memory: zeros that take no memory until they are written, so that a large KV cache is there at once.

vLLM fills its KV cache with zeros when it starts: gigabytes, of which most servers use a part, at a third of a second
to several seconds each. So it does with room for the tokens of as many requests as may run, each of the whole context.
Fresh pages of the operating system read as zeros without that.
"""

import contextlib
import math
import mmap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

SMALLEST = 1 << 20
"""Bytes; what is smaller is cheap to fill."""
_HUGE_PAGE = 2 << 20


class DemandZero(TorchFunctionMode):
    """Within it, `torch.zeros` of many bytes on the CPU is demand-zero memory. `size`: bytes of int8 given out so."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        match func, args, dict(kwargs or {}):
            case torch.zeros, (shape,), {"dtype": asked, "device": device, **rest} if torch.device(
                device
            ).type == "cpu" and not any(rest.values()):
                shape = (shape,) if isinstance(shape, int) else tuple(shape)
                dtype = torch.empty(0, dtype=asked).dtype  # Python's bool is one too
                size = math.prod(shape) * dtype.itemsize
                if size >= SMALLEST:
                    self.size += size if dtype is torch.int8 else 0
                    return demand_zeros(size).view(dtype).view(shape)
        return func(*args, **(kwargs or {}))


def demand_zeros(size: int) -> torch.Tensor:
    """`size` zeros of int8, aligned to a page of the operating system."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)  # few first touches, each of more bytes
    return torch.frombuffer(memory, dtype=torch.int8)


def room(size: int) -> torch.Tensor:
    """`size` bytes, in huge pages if they fill some: a stream through small ones waits at every 4 KiB.

    At a multiple of 64 bytes.
    """
    return torch.empty(size, dtype=torch.uint8) if size < _HUGE_PAGE else demand_zeros(size).view(torch.uint8)
