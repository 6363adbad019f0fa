"""What is kept of maps for a page, as they come by: every head small, flagged ones in full.

Shapes: N heads, T queries, S = T keys.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from parity.comparison.attention_image import cell_states, encode_weights, fold_cells, fold_weights

# Cells a side of a small map, of a flagged head's, and of a mask.
SMALL, LARGE = 64, 512
# Flagged heads that are kept of a layer and in all, small maps of a layer, and masks in all; of
# rows that leak as many again.
MOST_OF_LAYER, MOST_FLAGGED, MOST_HEADS, MOST_MASKS = 4, 24, 40, 4


@dataclass(frozen=True)
class HeadPicture:
    """One head's map, folded by its largest weight.

    Attributes:
        layer, head, row: whose.
        weights: codes [t, s], see `parity.comparison.attention_image`.
        cells: visible, hidden or leaked [t, s].
        step: queries and keys that a cell stands for.
        off: of each folded query the largest distance of its weights' sum from 1 [t].
        rules: what was found in it.
    """

    layer: int
    head: int
    row: int
    weights: np.ndarray
    cells: np.ndarray
    step: int
    off: np.ndarray
    rules: tuple[str, ...]


@dataclass
class ObservedRow:
    """What a row's queries were seen to look at, in any head of any layer.

    Attributes:
        intended: what they may see [T, S].
        observed: where weight was [T, S].
    """

    intended: np.ndarray
    observed: np.ndarray


@dataclass
class KeptPictures:
    """Pictures of one measuring.

    Attributes:
        sheets: of each layer, all heads of row 0 small: codes [n, t, s].
        cells: visible or hidden of these, any leak counting [n, t, s].
        small_step: queries and keys that a cell of them stands for.
        flagged: in full.
        masks: by row.
    """

    sheets: dict[int, np.ndarray] = field(default_factory=dict)
    cells: dict[int, np.ndarray] = field(default_factory=dict)
    small_step: int = 1
    flagged: list[HeadPicture] = field(default_factory=list)
    masks: dict[int, ObservedRow] = field(default_factory=dict)

    def add(
        self,
        layer: int,
        row: int,
        weights: np.ndarray,
        visible: np.ndarray,
        flagged: Iterable[tuple[int, tuple[str, ...]]],
    ) -> None:
        """Look at a layer's weights on one row.

        Args:
            layer: whose.
            row: which row of all.
            weights: [N, T, S].
            visible: what may be seen [T, S].
            flagged: heads, and what was found in each.
        """
        live = np.asarray(visible.any(axis=1, keepdims=True))
        seen = (weights != 0).any(axis=0) & live
        leaks = bool((seen & ~visible).any())
        if row in self.masks or len(self.masks) < (2 if leaks else 1) * MOST_MASKS:
            kept = self.masks.setdefault(row, ObservedRow(visible, np.zeros_like(visible)))
            kept.observed |= seen
        if row == 0:
            self.small_step = -(-len(visible) // SMALL)
            heads = [_folded(w, visible, live, self.small_step) for w in weights[:MOST_HEADS]]
            self.sheets[layer] = np.stack([codes for codes, _ in heads])
            self.cells[layer] = np.stack([cells for _, cells in heads])
        held = {(one.layer, one.head) for one in self.flagged}
        room = MOST_OF_LAYER - sum(one == layer for one, _ in held)
        wanted = [(head, rules) for head, rules in flagged if (layer, head) not in held]
        for head, rules in wanted[: max(0, min(room, MOST_FLAGGED - len(held)))]:
            self.flagged.append(_picture(layer, head, row, weights[head], visible, rules))


def _folded(
    weights: np.ndarray, visible: np.ndarray, live: np.ndarray, step: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return one head's codes and cells, folded."""
    shown = np.where(live, weights, weights.dtype.type(0)).astype(np.float32)
    cells = cell_states(visible, shown != 0, np.zeros_like(visible))
    return encode_weights(fold_weights(shown, step)), fold_cells(cells, step)


def _picture(
    layer: int,
    head: int,
    row: int,
    weights: np.ndarray,
    visible: np.ndarray,
    rules: tuple[str, ...],
) -> HeadPicture:
    step = -(-len(visible) // LARGE)
    live = np.asarray(visible.any(axis=1, keepdims=True))
    codes, cells = _folded(weights, visible, live, step)
    off = np.where(live[:, 0], np.abs(weights.sum(axis=1, dtype=np.float64) - 1.0), 0.0)
    edges = np.arange(0, len(off), step)
    return HeadPicture(layer, head, row, codes, cells, step, np.maximum.reduceat(off, edges), rules)
