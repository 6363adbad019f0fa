"""How much memory there is, to be asked before much of it is allocated.

Linux promises memory that it does not have and then kills whoever uses it, so nothing could be
said afterwards.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


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


def size_in_words(count: int) -> str:
    """Return a number of bytes as people say it.

    >>> size_in_words(23_400_000_000)
    '23.4 GB'
    """
    value, units = float(count), ["bytes", "kB", "MB", "GB", "TB", "PB", "EB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.3g} {units[0]}" if value < 1000 else f"{value:.0f} {units[0]}"
