"""Giving freed memory back."""

from __future__ import annotations

import ctypes
import gc
import sys

# Less than this is not worth a walk through all objects of a process.
_WORTH_A_WALK = 100_000_000
# Less than this is soon asked for again, and the system hands it out page by page.
_WORTH_RETURNING = 500_000_000


class _Usage(ctypes.Structure):
    """What glibc's mallinfo2 says of its heaps, in bytes."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def release_freed_memory() -> None:
    """Return to the system what glibc's allocator keeps of freed arrays: 1.6 GB of `make parity`'s.

    By itself it returns the top of its heap alone, where arrays of up to 32 MB lie among small
    objects.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    # Other C libraries lack both, and glibc before 2.33 the second.
    trim, usage = (getattr(library, name, None) for name in ("malloc_trim", "mallinfo2"))
    if trim is None:
        return
    if usage is not None:
        usage.restype = _Usage
        if usage().fordblks < _WORTH_RETURNING:
            return
    trim(0)


def collect(held: int) -> None:
    """Free what refers to itself and give it back, where that may hold many bytes."""
    if held >= _WORTH_A_WALK:
        gc.collect()
    release_freed_memory()
