"""Keeps memory that training frees in the process, where the next step takes it again.

glibc gives every large buffer back to the kernel, and each page of the next one is a fault: a quarter of the time of a
small model's step on CPU (docs/log.md). Other C libraries are left alone.
"""

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h
_MOST = 2**31 - 1
_PAD = 1 << 26


def keep() -> None:
    """For the rest of the process."""
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _MOST), (_M_TOP_PAD, _PAD)):
        libc.mallopt(option, value)
