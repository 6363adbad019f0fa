"""The reference's side of a comparison."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np

from parity.taps import AXES, split_name

# A token whose reference is nearly zero has no meaningful relative error of its own: it is measured
# against this fraction of its tap's median token.
_SCALE_FLOOR = 0.1
_BLOCK_ELEMENTS = 1 << 16


class ReferenceTap:
    """One tap of the reference, and what every comparison with it needs, computed once.

    Args:
        name: canonical tap name; decides the layout.
        array: the float64 reference.
        valid: [B, T] bool (for a cache [B, S]), False for pads, which are not compared.
        mask: [B, T, S] bool, what each query is meant to see.
    """

    def __init__(self, name: str, array: np.ndarray, valid: np.ndarray, mask: np.ndarray) -> None:
        self.name = name
        self.kind, _ = split_name(name)
        self.axes = AXES[self.kind]
        self.array = array
        self.valid = valid
        self.mask = mask

    @cached_property
    def live(self) -> np.ndarray:
        """Which rows are compared: [B, T], for attention maps [B, N, T], for weights [out]."""
        if self.axes == "R":
            return np.ones(self.array.shape, bool)
        if not self.axes.startswith("B"):  # a matrix row by row; a vector or a number as a whole
            return np.ones(self.array.shape[:-1] or 1, bool)
        if self.axes != "BNTS":
            return self.valid
        rows = (self.valid & self.mask.any(-1))[:, None, :]
        return np.broadcast_to(rows, self.array.shape[:3])

    @cached_property
    def sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """Norm and largest element of each row, no less than a fraction of the tap's median."""
        norm, peak = np.zeros(self.live.size), np.zeros(self.live.size)
        for rows, cells, (g,) in self.blocks(self.array):
            seen = g if cells is None else np.where(cells, g, 0.0)
            seen = np.where(np.isfinite(seen), seen, 0.0)
            norm[rows] = np.sqrt(np.einsum("ri,ri->r", seen, seen))
            peak[rows] = np.maximum(seen.max(1), -seen.min(1))
        shape = self.live.shape
        return _at_least(norm.reshape(shape), self.live), _at_least(peak.reshape(shape), self.live)

    def blocks(
        self, *arrays: np.ndarray
    ) -> Iterator[tuple[slice, np.ndarray | None, list[np.ndarray]]]:
        """Yield arrays of this tap's layout as blocks of rows, in float64.

        Yields:
            Which rows, counted through `live` in order; for attention maps which of their cells
            are visible [r, elements]; and each array's rows [r, elements]. Attention maps end with
            the last column that one of the rows sees: half of a causal one is not looked at.
        """
        flat = [array.reshape(self.live.size, -1) for array in arrays]
        for rows, cells, stop in self._blocks:
            yield rows, cells, [a[rows, :stop].astype(np.float64, copy=False) for a in flat]

    @cached_property
    def _blocks(self) -> list[tuple[slice, np.ndarray | None, int]]:
        """Which rows make a block, which cells of them are visible, and before which column."""
        columns = self.array.size // max(self.live.size, 1)
        size, found = max(1, _BLOCK_ELEMENTS // max(columns, 1)), []
        for start in range(0, self.live.size, size):
            rows, cells, stop = slice(start, min(start + size, self.live.size)), None, columns
            if self.axes == "BNTS":
                cells = self.cells(rows)
                stop = int(np.flatnonzero(cells.any(0)).max(initial=0)) + 1
                cells = cells[:, :stop].copy()  # a view would keep all columns
            found.append((rows, cells, stop))
        return found

    def cells(self, rows: slice) -> np.ndarray:
        """Return which keys are visible [r, S] in some rows of an attention map."""
        b, _, q = np.unravel_index(np.arange(rows.start, rows.stop), self.live.shape)
        return self.mask[b, q]


def _at_least(sizes: np.ndarray, live: np.ndarray) -> np.ndarray:
    median = float(np.median(sizes[live])) if live.any() else 0.0
    return np.maximum(sizes, max(_SCALE_FLOOR * median, np.finfo(np.float64).tiny))
