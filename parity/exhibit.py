"""What a pass leaves behind for pictures: figures per token, and a few attention maps.

Whole tensors are gone when a report is drawn, so what it shows is folded down as it comes by, to a
size that depends on neither the model nor the prompt: always by the largest value of what falls
together, never by an average.

Shapes: B batch, T queries, S keys, N heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from parity.gold import Gold
from parity.result import TapRow
from parity.taps import split_name

# Columns a grid keeps for a row of tokens, cells a side that a small and a large map keep.
MOST_COLUMNS = 1024
SMALL, LARGE = 96, 640
MOST_HEADS, FLAGGED_HEADS = 32, 2

# Codes of weights: 0 is an exact zero, 1 more than nothing and less than the scale shows,
# 2 to 253 the scale, 254 no number; 255 is left for cells that show nothing.
SMALLEST_WEIGHT = 1e-4
LEVELS = 251
NO_NUMBER, NOTHING = 254, 255
# Codes of cells.
VISIBLE, HIDDEN, LEAKED, LOST = 0, 1, 2, 3


@dataclass
class Grid:
    """One way of running in one pass: the worst of each stage at each token.

    Attributes:
        rho: [stages, B, columns] over all of a stage's operators; NaN where nothing was compared.
        tap: [stages, B, columns] number in `names` of the operator that it is.
        names: operators by number, short.
        step: tokens a column stands for.
    """

    rho: np.ndarray
    tap: np.ndarray
    step: int
    names: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Maps:
    """Attention maps of one layer and batch row, coded and folded to few cells.

    Attributes:
        layer, row: whose.
        heads: which heads, [n].
        weights: codes of the subject, the reference and their difference, [n, 3, t, s].
        cells: visible, hidden, leaked or lost, [n, t, s].
        step: queries and keys a cell stands for.
        moved: the largest difference of each head.
    """

    layer: int
    row: int
    heads: tuple[int, ...]
    weights: np.ndarray
    cells: np.ndarray
    step: int
    moved: tuple[float, ...]


@dataclass
class Exhibit:
    """What one pass of one lane over one scenario leaves to be shown.

    Attributes:
        lane, scenario: the pass.
        stages: embedding, layers, head: L + 2.
        mask: what queries must see [B, T, S]; None in a pass through a cache.
        grids: by mode.
        sheets: attention maps by layer, every head small.
        details: of the first failing layer, the heads most at odds, large.
        given: the mask that the subject reports to use [B, T, S], if it does.
        obeyed: a layer and what its weights do with each cell, any head counting [B, T, S].
        failed_layer: the first layer with a failing tap.
    """

    lane: str
    scenario: str
    stages: int
    mask: np.ndarray | None
    batch: int
    columns: int
    grids: dict[str, Grid] = field(default_factory=dict)
    sheets: dict[int, Maps] = field(default_factory=dict)
    details: Maps | None = None
    given: np.ndarray | None = None
    obeyed: tuple[int, np.ndarray] | None = None
    failed_layer: int | None = None

    def fold(self, mode: str, tap: str, rho: np.ndarray, live: np.ndarray, start: int) -> None:
        """Keep the worst of a tap's figures at each token; `start` is its first column."""
        stage = self._stage(tap)
        if stage is None or rho.ndim < 2:
            return
        if rho.ndim == 3:  # by head, too
            rho, live = np.where(live, rho, 0.0).max(1), np.any(live, axis=1)
        grid = self.grids.get(mode)
        if grid is None:
            step = -(-self.columns // MOST_COLUMNS)
            shape = (self.stages, self.batch, -(-self.columns // step))
            grid = Grid(np.full(shape, np.nan, np.float32), np.zeros(shape, np.uint8), step)
            self.grids[mode] = grid
        short = split_name(tap)[0].removeprefix("layers.")
        if short not in grid.names:
            grid.names.append(short)
        number = grid.names.index(short)
        worst = np.full(grid.rho.shape[1:], -1.0)
        place = (start + np.arange(rho.shape[1])) // grid.step
        values = np.where(live, np.where(np.isnan(rho), np.inf, rho), -1.0)
        np.maximum.at(worst.T, place, values.T)
        better = (worst >= 0) & ~(worst <= grid.rho[stage])
        grid.rho[stage][better], grid.tap[stage][better] = worst[better], number

    def look(
        self, golds: Mapping[str, Gold], taps: Mapping[str, np.ndarray], rows: Sequence[TapRow]
    ) -> None:
        """Keep what a stage of the subject's own run shows of its masks and attention maps."""
        if self.mask is None:
            return
        if "mask" in taps and taps["mask"].shape == self.mask.shape:
            self.given = taps["mask"].astype(bool)
        for name, gold in golds.items():
            kind, layer = split_name(name)
            if kind != "layers.attn_probs" or layer is None or name not in taps:
                continue
            fails = any(not row.passed for row in rows)
            first = fails and self.failed_layer is None
            if first:
                self.failed_layer = layer
            if taps[name].shape != gold.array.shape:
                continue
            if first or self.obeyed is None:
                self.obeyed = layer, _obeyed(gold, taps[name])
            if first or layer in (0, (self.stages - 2) // 2, self.stages - 3):
                self._keep(layer, gold, taps[name], first)

    def _keep(self, layer: int, gold: Gold, probs: np.ndarray, failing: bool) -> None:
        """Fold the maps of the batch row that differs most, and enlarge those of flagged heads."""
        moved = np.zeros(probs.shape[:2])  # [B, N]
        for b, n in np.ndindex(*moved.shape):
            with np.errstate(invalid="ignore"):
                moved[b, n] = _largest(probs[b, n], gold.array[b, n], gold.live[b, n])
        row = int(moved.max(1).argmax())
        worst_first = np.argsort(-moved[row], kind="stable")
        heads = sorted(int(n) for n in worst_first[:MOST_HEADS])
        self.sheets[layer] = _folded(layer, row, heads, gold, probs, moved[row], SMALL)
        if failing and moved[row].max() > SMALLEST_WEIGHT:
            flagged = [int(n) for n in worst_first[:FLAGGED_HEADS]]
            self.details = _folded(layer, row, flagged, gold, probs, moved[row], LARGE)

    def _stage(self, tap: str) -> int | None:
        kind, layer = split_name(tap)
        if layer is not None:
            return layer + 1
        return {"embed": 0, "norm": self.stages - 1, "logits": self.stages - 1}.get(kind)


def _largest(probs: np.ndarray, gold: np.ndarray, live: np.ndarray) -> float:
    gap = np.abs(probs.astype(np.float64) - gold)
    gap = np.where(np.isnan(gap), np.inf, gap)[live]
    return float(gap.max(initial=0.0))


def _obeyed(gold: Gold, probs: np.ndarray) -> np.ndarray:
    """Return visible, hidden, leaked or lost for each cell [B, T, S]: lost or leaked in any head.

    A weight the reference itself has nearly at zero may underflow: that is no loss.
    """
    live = np.any(gold.live, axis=1)[..., None]
    cells = np.where(gold.mask, VISIBLE, HIDDEN).astype(np.uint8)
    cells[(probs != 0).any(1) & ~gold.mask & live] = LEAKED
    cells[((probs == 0) & (gold.array >= SMALLEST_WEIGHT)).any(1) & gold.mask] = LOST
    return cells


def _folded(
    layer: int,
    row: int,
    heads: Sequence[int],
    gold: Gold,
    probs: np.ndarray,
    moved: np.ndarray,
    side: int,
) -> Maps:
    """Code the maps of some heads of one batch row, on at most `side` cells a side."""
    step = -(-max(probs.shape[2:]) // side)
    seen = gold.mask[row]
    weights, cells = [], []
    for head in heads:
        t, g = probs[row, head].astype(np.float64), gold.array[row, head]
        live = gold.live[row, head][:, None]
        with np.errstate(invalid="ignore"):
            gap = np.abs(t - g)
        state = np.where(seen, VISIBLE, HIDDEN).astype(np.uint8)
        state[(t != 0) & ~seen & live] = LEAKED
        state[(t == 0) & (g >= SMALLEST_WEIGHT) & seen & live] = LOST
        weights.append([coded(folded(np.where(live, a, 0.0), step)) for a in (t, g, gap)])
        cells.append(fold_cells(state, step))
    return Maps(
        layer=layer,
        row=row,
        heads=tuple(heads),
        weights=np.array(weights, np.uint8),
        cells=np.array(cells, np.uint8),
        step=step,
        moved=tuple(float(moved[head]) for head in heads),
    )


def folded(values: np.ndarray, step: int) -> np.ndarray:
    """Fold [T, S] by the maximum of `step` by `step` cells; what is no number wins."""
    if step == 1:
        return values
    high = np.where(np.isnan(values), np.inf, values)
    for axis in (0, 1):
        edges = np.arange(0, values.shape[axis], step)
        high = np.maximum.reduceat(high, edges, axis=axis)
    return high


def fold_cells(cells: np.ndarray, step: int) -> np.ndarray:
    """Fold [T, S] cells: one violation marks its block, one visible cell makes it visible."""
    order = np.array([1, 0, 3, 2], np.uint8)  # hidden, visible, lost, leaked: the last wins
    ranked = folded(order[cells].astype(np.float64), step).astype(np.uint8)
    return np.array([HIDDEN, VISIBLE, LOST, LEAKED], np.uint8)[ranked]


def coded(weights: np.ndarray) -> np.ndarray:
    """Return weights as codes on the fixed logarithmic scale from 1e-4 to 1."""
    size = np.abs(weights)
    with np.errstate(divide="ignore", invalid="ignore"):
        place = np.log10(size / SMALLEST_WEIGHT) / -np.log10(SMALLEST_WEIGHT)
        codes = np.clip(np.round(place * LEVELS), -1, LEVELS) + 2
    codes = np.where(size == 0, 0, codes)
    return np.where(np.isfinite(size), codes, NO_NUMBER).astype(np.uint8)


def decoded(code: int) -> float:
    """Return the weight a code on the scale (2 to 253) stands for."""
    return float(SMALLEST_WEIGHT ** (1 - (code - 2) / LEVELS))
