"""Memory that is taken once and used again."""

import ctypes
import functools
import sys

_LARGEST_INT = (1 << 31) - 1
_MALLOPT = {  # glibc's malloc.h
    -3: 1 << 30,  # M_MMAP_THRESHOLD: blocks up to 1 GiB are not mapped by themselves
    -1: _LARGEST_INT,  # M_TRIM_THRESHOLD: up to 2 GiB are not given back
    -2: 256 << 20,  # M_TOP_PAD: more is taken 256 MiB at a time
    -8: 1,  # M_ARENA_MAX: one heap, as others cannot hold large blocks
}
LARGE_BYTES = 32 << 20
"""From here on glibc maps every block anew, and gives it back when it is freed."""


def expect_blocks(size: int) -> None:
    """Lets this process `keep_large_blocks` if blocks of so many bytes are large ones. Best called
    before threads are started, which get heaps of their own."""
    if size >= LARGE_BYTES:
        keep_large_blocks()


@functools.cache
def keep_large_blocks() -> None:
    """Lets this process keep the memory of freed large arrays for the next ones.

    By itself glibc returns it, and the page faults of each new batch cost as much as filling it.
    Does nothing where there is another allocator."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        for parameter, value in _MALLOPT.items():
            mallopt(parameter, value)
