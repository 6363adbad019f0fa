"""Freed memory goes back to the system where there is much of it, and only there."""

from __future__ import annotations

import ctypes
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from parity.lockstep import memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")


@pytest.mark.parametrize(("free", "trimmed"), [(1_600_000_000, 1), (400_000_000, 0)])
def test_it_takes_half_a_gigabyte(free: int, trimmed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    library = SimpleNamespace(
        malloc_trim=calls.append, mallinfo2=lambda: SimpleNamespace(fordblks=free)
    )
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    memory.release_freed_memory()
    assert len(calls) == trimmed


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    memory.release_freed_memory()


def test_an_older_one_that_does_not_count_gives_back_whatever_there_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(malloc_trim=calls.append))
    memory.release_freed_memory()
    assert calls == [0]


def test_what_is_free_is_counted_as_the_allocator_does() -> None:
    count = ctypes.CDLL(None).mallinfo2
    count.restype = memory._Usage
    held = [np.ones(10_000) for _ in range(300)]  # 80 kB each: none has pages of its own
    before = count().fordblks
    size = sum(one.nbytes for one in held)
    held.clear()
    assert 0.9 * size < count().fordblks - before < 1.5 * size
