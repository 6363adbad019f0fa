"""Attention maps for pictures: coded to a byte a cell, folded to few cells, call after call.

What falls together is folded by its largest value, never by an average.

Shapes: B batch, N heads, T queries, S keys; a call has t queries and the C keys up to its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

import numpy as np

from parity.comparison.reference import ReferenceTap

# Heads that a map of a whole layer shows at most.
MOST_HEADS = 32

# Codes of weights: 0 is an exact zero, 1 more than nothing and less than the scale shows,
# 2 to 253 the scale, 254 no number; 255 is left for cells that show nothing.
SMALLEST_WEIGHT = 1e-4
LEVELS = 251
NO_NUMBER, NOTHING = 254, 255
# Codes of cells.
VISIBLE, HIDDEN, LEAKED, LOST = 0, 1, 2, 3


@dataclass(frozen=True)
class AttentionImages:
    """Attention maps of one layer and batch row, coded and folded to few cells.

    Attributes:
        layer, row: whose.
        heads: which heads, [n].
        weights: codes of the subject, the reference and their difference, [n, 3, t, s].
        cells: visible, hidden, leaked or lost, [n, t, s].
        step: queries and keys a cell stands for.
        moved: the largest difference of each head.
        start: the first query that was looked at; nothing is shown of those before it.
    """

    layer: int
    row: int
    heads: tuple[int, ...]
    weights: np.ndarray
    cells: np.ndarray
    step: int
    moved: tuple[float, ...]
    start: int = 0

    def __str__(self) -> str:
        sizes = "{} x {} cells".format(*self.cells.shape[1:])
        maps = (
            f"attention maps of layer {self.layer}, row {self.row}: {sizes} of {self.step} tokens"
        )
        worst = int(np.argmax(self.moved))
        return (
            f"{maps}, {len(self.heads)} heads\n"
            f"largest difference {self.moved[worst]:.2e}, of head {self.heads[worst]}"
        )

    def _repr_html_(self) -> str:
        """Return what a notebook shows: `parity.report` draws, which NumPy alone does not."""
        return import_module("parity.report.notebook").attention_html(self)


def cell_states(seen: np.ndarray, leaks: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Return visible, hidden, leaked or lost for each cell, all three of one shape.

    Args:
        seen: what is meant to be seen.
        leaks: where something is seen that no rule excuses, should it be hidden.
        losses: where something is not seen, should it be visible.
    """
    states = np.where(seen, VISIBLE, HIDDEN).astype(np.uint8)
    states[leaks & ~seen] = LEAKED
    states[losses & seen] = LOST
    return states


class AttentionImageBuilder:
    """Maps of one layer that are still being put together.

    Args:
        layer: whose.
        rows: batch rows to keep.
        heads: heads to keep.
        columns: T of the whole pass, its queries and its keys.
        side: cells a side there may be.
        start: the first query that will be added.
    """

    def __init__(
        self,
        layer: int,
        rows: Sequence[int],
        heads: Sequence[int],
        columns: int,
        side: int,
        start: int,
    ) -> None:
        self.layer, self.rows, self.heads, self.start = layer, tuple(rows), tuple(heads), start
        self.step = -(-columns // side)
        cells = -(-columns // self.step)
        shape = len(self.rows), len(self.heads)
        self._weights = np.zeros((*shape, 3, cells, cells), np.uint8)
        self._cells = np.full((*shape, cells, cells), HIDDEN, np.uint8)
        self._moved = np.zeros(shape)

    def add(
        self, reference: ReferenceTap, probs: np.ndarray, moved: np.ndarray, start: int
    ) -> None:
        """Add a call.

        Args:
            reference: the reference's maps [B, N, t, C].
            probs: the subject's.
            moved: the largest difference of each [B, N].
            start: its first query.
        """
        top, stop = start // self.step, -(-(start + probs.shape[2]) // self.step)
        right = -(-probs.shape[3] // self.step)
        for i, row in enumerate(self.rows):
            seen = reference.mask[row]
            for j, head in enumerate(self.heads):
                t, g = probs[row, head].astype(np.float64), reference.array[row, head]
                live = reference.live[row, head][:, None]
                with np.errstate(invalid="ignore"):
                    gap = np.abs(t - g)
                lost = (t == 0) & (g >= SMALLEST_WEIGHT) & live
                state = cell_states(seen, (t != 0) & live, lost)
                cells = self._cells[i, j, top:stop, :right]
                cells[:] = _worse(cells, fold_cells(state, self.step, start))
                # Larger weights have larger codes.
                weights = self._weights[i, j, :, top:stop, :right]
                new = [
                    encode_weights(fold_weights(np.where(live, a, 0.0), self.step, start))
                    for a in (t, g, gap)
                ]
                np.maximum(weights, new, out=weights)
        kept = moved[np.ix_(self.rows, self.heads)]
        np.maximum(self._moved, kept, out=self._moved)

    def maps(self) -> AttentionImages:
        """Return the batch row that differs most so far, and the heads that do."""
        row = int(self._moved.max(1).argmax())
        heads = np.sort(np.argsort(-self._moved[row], kind="stable")[:MOST_HEADS])
        return AttentionImages(
            layer=self.layer,
            row=self.rows[row],
            heads=tuple(self.heads[n] for n in heads),
            weights=self._weights[row, heads],
            cells=self._cells[row, heads],
            step=self.step,
            moved=tuple(float(self._moved[row, n]) for n in heads),
            start=self.start,
        )


def fold_weights(values: np.ndarray, step: int, start: int = 0) -> np.ndarray:
    """Fold [t, C] by the maximum of `step` by `step` cells; what is no number wins.

    Cells are counted from query 0, `start` queries before the first of these.
    """
    if step == 1:
        return values
    high = np.where(np.isnan(values), np.inf, values)
    for axis, before in ((0, start % step), (1, 0)):
        edges = np.arange(-before, values.shape[axis], step).clip(min=0)
        high = np.maximum.reduceat(high, edges, axis=axis)
    return high


# Hidden, visible, lost, leaked: of cells that fall together the last one counts. Its own inverse.
_RANK = np.array([1, 0, 3, 2], np.uint8)


def fold_cells(cells: np.ndarray, step: int, start: int = 0) -> np.ndarray:
    """Fold [t, C] cells: one violation marks its block, one visible cell makes it visible."""
    return _RANK[fold_weights(_RANK[cells].astype(np.float64), step, start).astype(np.uint8)]


def _worse(cells: np.ndarray, others: np.ndarray) -> np.ndarray:
    return _RANK[np.maximum(_RANK[cells], _RANK[others])]


def encode_weights(weights: np.ndarray) -> np.ndarray:
    """Return weights as codes on the fixed logarithmic scale from 1e-4 to 1."""
    size = np.abs(weights)
    with np.errstate(divide="ignore", invalid="ignore"):
        place = np.log10(size / SMALLEST_WEIGHT) / -np.log10(SMALLEST_WEIGHT)
        codes = np.clip(np.round(place * LEVELS), -1, LEVELS) + 2
    codes = np.where(size == 0, 0, codes)
    return np.where(np.isfinite(size), codes, NO_NUMBER).astype(np.uint8)


def decode_weight(code: int) -> float:
    """Return the weight a code on the scale (2 to 253) stands for."""
    return float(SMALLEST_WEIGHT ** (1 - (code - 2) / LEVELS))
