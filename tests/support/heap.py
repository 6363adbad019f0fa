"""What this process keeps of the memory that it has freed."""

from __future__ import annotations

import ctypes
import sys

# Of malloc.h: how much free memory at the heap's top is given back, and from which size on an array
# has pages of its own, which are given back with it.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Have glibc keep what is freed, for the next test: new pages were a tenth of the time."""
    if sys.platform == "linux" and (tune := getattr(ctypes.CDLL(None), "mallopt", None)):
        tune(_MMAP_THRESHOLD, 1 << 30)
        tune(_TRIM_THRESHOLD, (1 << 31) - 1)
