"""Where every byte of a checkpoint goes, planned before the first is written.

A planned layout is what makes a conversion stream and resume: files get their final length at the
start, every tensor has its places in them, and tensors can be written one by one in any order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

Transform = Callable[[np.ndarray, np.dtype], np.ndarray]


@dataclass(frozen=True)
class Piece:
    """A place for (part of) a tensor.

    Attributes:
        file: name within the target.
        offset: first byte in the file.
        dtype: as stored.
        transform: canonical tensor and `dtype` to the array whose bytes are stored here.
    """

    file: str
    offset: int
    dtype: np.dtype
    transform: Transform


@dataclass
class Layout:
    """All files of a checkpoint.

    Attributes:
        heads: first bytes of the large files.
        lengths: total lengths of the large files in bytes.
        pieces: places of every tensor, by canonical name.
        small: whole contents of the small files.
    """

    heads: dict[str, bytes] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    pieces: dict[str, list[Piece]] = field(default_factory=dict)
    small: dict[str, bytes] = field(default_factory=dict)

    def add_file(self, name: str, head: bytes, length: int) -> None:
        """Plan a large file of `length` bytes that begins with `head`."""
        self.heads[name] = head
        self.lengths[name] = length

    @property
    def nbytes(self) -> int:
        """Size of all files in bytes."""
        return sum(self.lengths.values()) + sum(len(content) for content in self.small.values())
