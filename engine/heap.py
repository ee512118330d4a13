"""The C heap of a process: what is free in it goes back to the machine.

A start allocates hundreds of megabytes in pieces that the heap itself holds, and gives most of them up again. glibc
keeps free pages that lie below one that is used, for as long as the process lives.
"""

import contextlib
import ctypes


def return_free_memory() -> None:
    """Gives the machine all whole pages that nothing is in; nothing happens where the C library cannot do that."""
    with contextlib.suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))
