"""Where every byte of a checkpoint goes, planned before the first is written.

A planned layout is what makes a conversion stream and resume: files get their final length at the
start, every tensor has its places in them, and tensors can be written one by one in any order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

Transform = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Piece:
    """A place for (part of) a tensor.

    Attributes:
        file: name within the target.
        offset: first byte in the file.
        transform: canonical tensor to the array whose bytes are stored here.
        checksums: where in the file the CRC-32 of these bytes goes, in 4 bytes, lowest first.
    """

    file: str
    offset: int
    transform: Transform
    checksums: tuple[int, ...] = ()


@dataclass
class Layout:
    """All files of a checkpoint.

    Attributes:
        frames: what the large files hold besides tensors, as (offset, bytes).
        lengths: total lengths of the large files in bytes.
        pieces: places of every tensor, by canonical name.
        small: whole contents of the small files.
        heads: digests of what the large files say besides tensors that decides an answer.
        notes: what the format has no form for; weights are never among it.
    """

    frames: dict[str, list[tuple[int, bytes]]] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    pieces: dict[str, list[Piece]] = field(default_factory=dict)
    small: dict[str, bytes] = field(default_factory=dict)
    heads: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add_file(self, name: str, frame: list[tuple[int, bytes]], length: int) -> None:
        """Plan a large file of `length` bytes."""
        self.frames[name] = frame
        self.lengths[name] = length

    @property
    def nbytes(self) -> int:
        """Size of all files in bytes."""
        return sum(self.lengths.values()) + sum(len(content) for content in self.small.values())


def store_as_is(values: np.ndarray) -> np.ndarray:
    """Store a tensor as it is."""
    return values


def split_evenly(sizes: Mapping[str, int], parts: int) -> list[list[str]]:
    """Divide items over at most `parts` runs of about equal total size, in their order."""
    total, seen = max(1, sum(sizes.values())), 0
    runs: list[list[str]] = [[] for _ in range(parts)]
    for name, size in sizes.items():
        runs[min(parts - 1, seen * parts // total)].append(name)
        seen += size
    return [run for run in runs if run]


def byte_size(shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Return the size of an array in bytes, in integers that cannot overflow."""
    return math.prod(shape) * dtype.itemsize
