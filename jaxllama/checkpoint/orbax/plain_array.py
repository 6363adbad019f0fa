"""Arrays as our own conversions leave them: files of plain pieces, read straight to their place.

A directory for each array holds `zarr.json` and, at `c/0/1`, one file for each cell of a grid; a
file holds the pieces of its cell one after the other, then 16 bytes for each that say where it is
(offset and length), then 4 of a checksum over these.

Source: the specification of zarr 3 and its codec `sharding_indexed`.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np

from jaxllama.checkpoint.base import Index
from jaxllama.checkpoint.hf.safetensors_file import open_raw, read_into
from jaxllama.checkpoint.orbax.lengths import crc32c
from jaxllama.dtypes import FLOATS
from jaxllama.errors import CheckpointError

_ENTRY_BYTES, _CHECKSUM_BYTES = 16, 4
_BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
_INDEX = [_BYTES, {"name": "crc32c"}]


@dataclass(frozen=True)
class PlainArray:
    """An array in files of uncompressed pieces.

    Attributes:
        directory: of the array.
        shape: of the array.
        dtype: of the array.
        cell: shape of what one file holds; the last of an axis may reach over the array's edge.
        piece: shape of what lies together in a file; divides `cell`.
    """

    directory: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    cell: tuple[int, ...]
    piece: tuple[int, ...]

    def read(self, index: Index | None = None) -> np.ndarray:
        """Return the array, or a part of it, of no more pieces than it lies in.

        Args:
            index: a slice for each axis, with both ends.

        Raises:
            CheckpointError: a file is missing, or is not as long as its pieces.
        """
        nbytes, stored = math.prod(self.shape) * self.dtype.itemsize, stored_bytes(self.directory)
        if nbytes > stored:
            raise CheckpointError(
                f"{self.directory}: {nbytes} bytes by its shape, its files have {stored}"
            )
        wanted = index or tuple(slice(0, length) for length in self.shape)
        result = np.empty([one.stop - one.start for one in wanted], self.dtype)
        for at in _grid(self.shape, self.cell):
            if _overlap([i * n for i, n in zip(at, self.cell, strict=True)], self.cell, wanted):
                self._read_cell(at, wanted, result)
        return result

    def check(self) -> None:
        """Check that those of its files that are there are as long as their pieces.

        Raises:
            CheckpointError: one is not, or its index is damaged.
        """
        for path in map(self._file, _grid(self.shape, self.cell)):
            if path.exists():  # another host may have the others
                with open_raw(path) as file:
                    self._offsets(file)

    def _file(self, at: tuple[int, ...]) -> Path:
        return self.directory.joinpath("c", *map(str, at))

    def _offsets(self, file: FileIO) -> np.ndarray:
        counts = (c // p for c, p in zip(self.cell, self.piece, strict=True))
        return _offsets(file, math.prod(counts), math.prod(self.piece) * self.dtype.itemsize)

    def _read_cell(self, at: tuple[int, ...], wanted: Index, result: np.ndarray) -> None:
        counts = tuple(c // p for c, p in zip(self.cell, self.piece, strict=True))
        corner = [i * length for i, length in zip(at, self.cell, strict=True)]
        nbytes = math.prod(self.piece) * self.dtype.itemsize
        with open_raw(self._file(at)) as file:
            offsets = self._offsets(file)
            pieces = itertools.product(*map(range, counts))
            for offset, within in zip(offsets, pieces, strict=True):
                first = [
                    c + i * length for c, i, length in zip(corner, within, self.piece, strict=True)
                ]
                if (places := _overlap(first, self.piece, wanted)) is None:
                    continue
                place, own = result[places[0]], places[1]
                if (
                    place.flags.c_contiguous
                    and place.shape[1:] == self.piece[1:]
                    and not own[0].start
                ):
                    read_into(file, int(offset), place.reshape(-1).view(np.uint8))
                    continue
                raw = np.empty(nbytes, np.uint8)
                read_into(file, int(offset), raw)
                place[...] = raw.view(self.dtype).reshape(self.piece)[own]


def _overlap(
    first: Sequence[int], lengths: Sequence[int], wanted: Index
) -> tuple[Index, Index] | None:
    """Return where what is wanted and a block share values: in the one, and in the other.

    Args:
        first: where the block begins.
        lengths: of the block.
        wanted: a slice for each axis.
    """
    at = [
        (max(i, one.start), min(i + n, one.stop))
        for i, n, one in zip(first, lengths, wanted, strict=True)
    ]
    if any(start >= stop for start, stop in at):
        return None
    of_wanted = tuple(slice(a - w.start, b - w.start) for (a, b), w in zip(at, wanted, strict=True))
    return of_wanted, tuple(slice(a - i, b - i) for (a, b), i in zip(at, first, strict=True))


def stored_bytes(directory: Path) -> int:
    """Return how many bytes the files of a directory have."""
    return sum(
        os.stat(os.path.join(place, name)).st_size
        for place, _, names in os.walk(directory)
        for name in names
    )


def _grid(shape: tuple[int, ...], cell: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    return itertools.product(*(range(-(-s // c)) for s, c in zip(shape, cell, strict=True)))


def _offsets(file: FileIO, count: int, nbytes: int) -> np.ndarray:
    """Return where each piece of a file begins, once they are known to fill the file exactly."""
    length = os.fstat(file.fileno()).st_size
    expected = count * (nbytes + _ENTRY_BYTES) + _CHECKSUM_BYTES
    if length != expected:
        raise CheckpointError(f"{file.name}: {length} bytes, expected {expected}")
    raw = np.empty(count * _ENTRY_BYTES + _CHECKSUM_BYTES, np.uint8)
    read_into(file, count * nbytes, raw)
    index, checksum = raw[:-_CHECKSUM_BYTES], int(raw[-_CHECKSUM_BYTES:].view("<u4")[0])
    if (found := crc32c(index.tobytes())) != checksum:
        raise CheckpointError(
            f"{file.name}: checksum {found:08x} of its index, the file states {checksum:08x}"
        )
    offsets, lengths = index.view("<u8").reshape(count, 2).T
    if (lengths != nbytes).any() or (np.sort(offsets) != np.arange(count) * nbytes).any():
        raise CheckpointError(f"{file.name}: its pieces do not lie where its index says")
    return offsets


def read_description(directory: Path, about: Mapping[str, Any]) -> PlainArray | None:
    """Return the array that a zarr.json describes, None where it is stored in any other way."""
    shape, dtype = about.get("shape"), FLOATS.get(str(about.get("data_type")))
    codecs = about.get("codecs")
    if not shape or dtype is None or not isinstance(codecs, list) or len(codecs) != 1:
        return None
    setting = codecs[0].get("configuration") or {}
    cell = (about.get("chunk_grid") or {}).get("configuration", {}).get("chunk_shape") or []
    piece = setting.get("chunk_shape") or []
    plain = (
        codecs[0].get("name") == "sharding_indexed"
        and setting.get("codecs") == [_BYTES]
        and setting.get("index_codecs") == _INDEX
        and setting.get("index_location", "end") == "end"
        and about.get("chunk_key_encoding") == {"name": "default"}
        and not about.get("storage_transformers")
        and isinstance(cell, list)
        and isinstance(piece, list)
        and len(cell) == len(piece) == len(shape)
        and all(isinstance(n, int) and n > 0 for n in (*shape, *cell, *piece))
        and not any(c % p for c, p in zip(cell, piece, strict=True))
        # Else pieces that are all beyond the array's edge are left out of their file.
        and (cell == piece or not any(s % c for s, c in zip(shape, cell, strict=True)))
    )
    return PlainArray(directory, tuple(shape), dtype, tuple(cell), tuple(piece)) if plain else None
