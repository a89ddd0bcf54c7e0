"""glibc malloc settings for reusing the memory of large arrays."""

import ctypes
import sys

_MAX_INT = (1 << 31) - 1
_MALLOPT = {  # glibc's malloc.h
    -3: 1 << 30,  # M_MMAP_THRESHOLD: blocks of up to 1 GiB come from the heap
    -1: _MAX_INT,  # M_TRIM_THRESHOLD: up to 2 GiB of freed heap stay with the process
    -2: 256 << 20,  # M_TOP_PAD: the heap grows by 256 MiB at a time
    -8: 1,  # M_ARENA_MAX: one heap, as those of other threads cannot hold large blocks
}
LARGE_BYTES = 32 << 20
"""Blocks from this size on are mapped anew by glibc each time, and returned when they are freed."""


def tune_malloc(block_bytes: int) -> None:
    """Makes this process reuse the memory of freed large arrays, if blocks of this size are large.

    By default glibc returns it, and the page faults of each new batch cost as much as filling it.
    Best called before threads are started, which get heaps of their own. Does nothing where there
    is another allocator."""
    if block_bytes < LARGE_BYTES or sys.platform != "linux":
        return
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        for parameter, value in _MALLOPT.items():
            mallopt(parameter, value)
