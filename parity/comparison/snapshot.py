"""What a pass leaves behind for pictures: figures per token, and a few attention maps.

Whole tensors are gone when a report is drawn, so what it shows is folded down as it comes by, to a
size that depends on neither the model nor the prompt: always by the largest value of what falls
together, never by an average.

Shapes: B batch, T queries, S keys, N heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from parity.comparison.attention_image import (
    HIDDEN,
    SMALLEST_WEIGHT,
    AttentionImageBuilder,
    AttentionImages,
    cell_states,
)
from parity.comparison.reference import ReferenceTap
from parity.taps import SETUP_TAPS, split_name, stage_of

# Columns a grid keeps for a row of tokens, cells a side that a small and a large map keep.
MOST_COLUMNS = 1024
SMALL, LARGE = 96, 640
FLAGGED_HEADS = 2


@dataclass
class ErrorGrid:
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
class ObservedMask:
    """Visible, hidden, leaked or lost for each cell of a mask, any head counting.

    Attributes:
        layer: whose weights.
        start: the first query that was looked at.
        cells: [B, T, S].
    """

    layer: int
    start: int
    cells: np.ndarray


@dataclass
class PassSnapshot:
    """What one pass of one lane over one scenario leaves to be shown.

    Attributes:
        lane, scenario: the pass.
        stages: embedding, layers, head: L + 2.
        mask: what queries must see [B, T, S].
        batch, columns: B, T.
        cached: whether it was fed call by call, through a cache.
        grids: by mode.
        sheets: attention maps by layer, every head small.
        details: of the first failing layer, the heads most at odds, large.
        reported_mask: the mask that the subject reports to use [B, T, S], if it does.
        observed_mask: what a layer's weights do with each cell.
        failed_layer: the first layer with a failing tap.
    """

    lane: str
    scenario: str
    stages: int
    mask: np.ndarray
    batch: int
    columns: int
    cached: bool = False
    grids: dict[str, ErrorGrid] = field(default_factory=dict)
    sheets: dict[int, AttentionImages] = field(default_factory=dict)
    details: AttentionImages | None = None
    reported_mask: np.ndarray | None = None
    observed_mask: ObservedMask | None = None
    failed_layer: int | None = None
    _builders: dict[int, AttentionImageBuilder] = field(default_factory=dict)
    _large: AttentionImageBuilder | None = None

    @property
    def name(self) -> str:
        """The pass, in words."""
        return f"{self.lane} {self.scenario}" + ", through the cache" * self.cached

    def add_errors(
        self, mode: str, tap: str, rho: np.ndarray, live: np.ndarray, start: int
    ) -> None:
        """Keep the worst of a tap's figures at each token; `start` is its first column."""
        stage = stage_of(tap, self.stages - 2)
        if split_name(tap)[0] in SETUP_TAPS or rho.ndim < 2:
            return
        if rho.ndim == 3:  # by head, too
            rho, live = np.where(live, rho, 0.0).max(1), np.any(live, axis=1)
        grid = self.grids.get(mode)
        if grid is None:
            step = -(-self.columns // MOST_COLUMNS)
            shape = (self.stages, self.batch, -(-self.columns // step))
            grid = ErrorGrid(np.full(shape, np.nan, np.float32), np.zeros(shape, np.uint8), step)
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

    def add_attention(
        self,
        references: Mapping[str, ReferenceTap],
        taps: Mapping[str, np.ndarray],
        failed: bool,
        start: int = 0,
    ) -> None:
        """Keep what a stage of the subject's own run shows of its masks and attention maps.

        Args:
            references: the reference's taps of this stage and call.
            taps: the subject's.
            failed: whether one of them is beyond its limit.
            start: the pass's column that is the call's first query.
        """
        for name, reference in references.items():
            kind, layer = split_name(name)
            if name not in taps:
                continue
            fits = taps[name].shape == reference.array.shape
            if kind == "mask" and fits:
                if self.reported_mask is None:
                    self.reported_mask = np.zeros(self.mask.shape, bool)
                self.reported_mask[_place(reference, start)] = taps[name]
            elif kind == "layers.attn_probs" and layer is not None:
                first = failed and self.failed_layer is None
                if first:
                    self.failed_layer = layer
                if fits:
                    self._look_at(layer, reference, taps[name], start, first)

    def _look_at(
        self, layer: int, reference: ReferenceTap, probs: np.ndarray, start: int, first: bool
    ) -> None:
        if first or self.observed_mask is None:
            self.observed_mask = ObservedMask(
                layer, start, np.full(self.mask.shape, HIDDEN, np.uint8)
            )
        if layer == self.observed_mask.layer:
            self.observed_mask.cells[_place(reference, start)] = _observe_mask(reference, probs)
        if layer in (0, (self.stages - 2) // 2, self.stages - 3, self.failed_layer):
            self._keep(layer, reference, probs, start)

    def _keep(self, layer: int, reference: ReferenceTap, probs: np.ndarray, start: int) -> None:
        """Add a call to the maps of a layer, and to the large ones of flagged heads."""
        batch, heads = probs.shape[:2]
        moved = np.zeros((batch, heads))
        for b, n in np.ndindex(*moved.shape):
            with np.errstate(invalid="ignore"):
                moved[b, n] = _largest(probs[b, n], reference.array[b, n], reference.live[b, n])
        worst = int(moved.max(1).argmax())
        if layer not in self._builders:
            # Which row will differ most is known beforehand where this call is the only one.
            rows = range(batch) if self.cached else [worst]
            builder = AttentionImageBuilder(layer, rows, range(heads), self.columns, SMALL, start)
            self._builders[layer] = builder
        self._builders[layer].add(reference, probs, moved, start)
        self.sheets[layer] = self._builders[layer].maps()
        if layer != self.failed_layer:
            return
        if self._large is None and moved.max() > SMALLEST_WEIGHT:
            flagged = np.sort(np.argsort(-moved[worst], kind="stable")[:FLAGGED_HEADS]).tolist()
            self._large = AttentionImageBuilder(layer, [worst], flagged, self.columns, LARGE, start)
        if self._large is not None:
            self._large.add(reference, probs, moved, start)
            self.details = self._large.maps()


def _largest(probs: np.ndarray, reference: np.ndarray, live: np.ndarray) -> float:
    gap = np.abs(probs.astype(np.float64) - reference)
    gap = np.where(np.isnan(gap), np.inf, gap)[live]
    return float(gap.max(initial=0.0))


def _place(reference: ReferenceTap, start: int) -> tuple[slice, slice, slice]:
    """Return where in [B, T, S] a call's queries and keys are."""
    queries, keys = reference.mask.shape[1:]
    return slice(None), slice(start, start + queries), slice(keys)


def _observe_mask(reference: ReferenceTap, probs: np.ndarray) -> np.ndarray:
    """Return visible, hidden, leaked or lost for each cell [B, T, S]: lost or leaked in any head.

    A weight the reference itself has nearly at zero may underflow: that is no loss.
    """
    live = np.any(reference.live, axis=1)[..., None]
    lost = ((probs == 0) & (reference.array >= SMALLEST_WEIGHT)).any(1)
    return cell_states(reference.mask, (probs != 0).any(1) & live, lost)
