"""Whether the machine has room for inputs of a length, asked before anything is allocated.

Attention maps grow with the square of the length, all else with the length. Linux promises memory
that it does not have and then kills whoever uses it, so nothing could be said afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from jaxllama.errors import InputError, argument
from parity.scenarios import Shape

# Float64 maps that a run holds at once, at the least: two are the reference's scores and weights.
# Measured on `tiny` as the growth of its peak with the length: 4.5 in float32, 5.9 in float64, 7.9
# with the isolated mode, 6.6 through the cache, 11 streamed; backwards 4.0 for each of its layers.
FORWARD_MAPS = 4
BACKWARD_MAPS = 3
# What is captured is one implementation's scores and weights, in its own dtype.
CAPTURED_MAPS = 1
_MAP_BYTES = 8


def check_room(shapes: Sequence[Shape], heads: int, *, maps: int, free: int | None = None) -> None:
    """Refuse scenarios whose attention maps alone are more than the memory that is free.

    Args:
        shapes: of the scenarios. Those that run as one batch are held together.
        heads: N.
        maps: float64 maps [B N T T] that are held at once, at the least.
        free: bytes of memory; the machine's if None.

    Raises:
        InputError: they are; it says which length would fit.
    """
    free = free_bytes() if free is None else free
    if free is None:
        return
    for batch in dict.fromkeys(shape.batch for shape in shapes):
        together = [shape for shape in shapes if shape.batch == batch]
        rows, length = sum(shape.rows for shape in together), together[0].length
        per_square = maps * rows * heads * _MAP_BYTES
        if per_square * length**2 <= free:
            continue
        fits = math.isqrt(free // per_square)
        several = len({*shapes}) > 1
        raise InputError(
            f"{length} tokens per row (scenario {', '.join(s.name for s in together)}): attention "
            f"maps of {rows} x {heads} x {length} x {length} in float64, {maps} at once, take at "
            f"least {_in_words(per_square * length**2)}, and {_in_words(free)} of this machine's "
            f"memory are free; give {argument('length', max(fits, 1))} or less"
            + (f", or one of {argument('scenarios')} at a time" if several else "")
        )


def free_bytes() -> int | None:
    """Return how much memory can still be had, swap included; None where that cannot be told."""
    found = [free for free in (_of_machine(), *_of_groups()) if free is not None]
    return min(found, default=None)


def _of_machine() -> int | None:
    with suppress(OSError, KeyError, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found = dict(line.split()[:2] for line in lines)  # in units of 1024 bytes
        return 1024 * (int(found["MemAvailable:"]) + int(found["SwapFree:"]))
    return None


def _of_groups() -> list[int]:
    """Return what a container's limits leave, in either version of control groups."""
    root, left = Path("/sys/fs/cgroup"), []
    for limit, used in (
        (root / "memory.max", root / "memory.current"),
        (root / "memory/memory.limit_in_bytes", root / "memory/memory.usage_in_bytes"),
    ):
        with suppress(OSError, ValueError):  # no such version, or no limit: "max"
            allowed = int(limit.read_text())
            # Files that were read count as used, and give way.
            lines = (limit.parent / "memory.stat").read_text().splitlines()
            stat = dict(line.split() for line in lines)
            cached = int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0))
            left.append(max(0, allowed - int(used.read_text()) + cached))
    return left


def _in_words(count: int) -> str:
    """Return a number of bytes as people say it.

    >>> _in_words(23_400_000_000)
    '23.4 GB'
    """
    value, units = float(count), ["bytes", "kB", "MB", "GB", "TB", "PB", "EB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.3g} {units[0]}" if value < 1000 else f"{value:.0f} {units[0]}"
