"""The report's figures as plain data: grids of rho, error growth, attention maps, masks.

Shapes: B batch, T tokens, S keys.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from parity.comparison.attention_image import (
    HIDDEN,
    LEAKED,
    LEVELS,
    LOST,
    NO_NUMBER,
    NOTHING,
    VISIBLE,
    AttentionImages,
    cell_states,
    fold_cells,
)
from parity.comparison.snapshot import ErrorGrid, PassSnapshot
from parity.report.sprites import arrange_tiles, marks, picture
from parity.report.wording import place
from parity.result import TapResult
from parity.taps import AXES, CACHE_TAPS, split_name, stage_of

# log10 rho, shown on one scale in every grid of every report.
RHO_SCALE = (-2.0, 14.0)
# Code of a cell that a mask shows.
_SEEN = 2 + LEVELS // 3
_MASK_SIDE = 512


@dataclass(frozen=True)
class Picture:
    """One sprite: a data URI, its layer of violations, and how it is divided into tiles."""

    data: str
    marks: str | None
    across: int
    down: int
    width: int
    height: int

    @property
    def bytes(self) -> int:
        """Return how long it is."""
        return len(self.data) + len(self.marks or "")


def rho_codes(rho: np.ndarray) -> np.ndarray:
    """Return rho on the fixed logarithmic scale; NaN shows nothing, infinity is no number."""
    low, high = RHO_SCALE
    with np.errstate(divide="ignore", invalid="ignore"):
        at = (np.log10(rho) - low) / (high - low)
        codes = np.where(at < 0, 1, 2 + np.round(np.clip(at, 0, 1) * LEVELS))
    codes = np.where(rho == 0, 0, codes)
    codes = np.where(np.isinf(rho), NO_NUMBER, codes)
    return np.where(np.isnan(rho), NOTHING, codes).astype(np.uint8)


@dataclass(frozen=True)
class OperatorGrid:
    """Layers by operators of one run.

    Attributes:
        picture: log rho of each.
        kinds: of taps, a column each; `names` as headings.
        layers: a line each.
        figures: line by line what the pointer reads: rho, error, and of a failing tap more.
    """

    picture: Picture
    kinds: list[str]
    names: list[str]
    layers: list[int]
    figures: list[list[str]]


@dataclass(frozen=True)
class TokenGrid:
    """Stages by tokens of one run.

    Attributes:
        picture: log rho of the worst operator of each.
        taps: which operator that is, as a picture too: it packs better than a list.
        names: of operators.
        step: tokens that a column stands for.
        columns, batch, stages: how many there are.
        beyond: cells beyond the limit.
    """

    picture: Picture
    taps: Picture
    names: list[str]
    step: int
    columns: int
    batch: int
    stages: int
    beyond: int


@dataclass(frozen=True)
class GrowthPoint:
    """A stage's last tap: its figures, and where its error is drawn."""

    stage: int
    name: str
    error: float
    noise: float
    limit: float
    passed: bool
    x: float = 0.0
    y: float = 0.0


@dataclass(frozen=True)
class Growth:
    """The error over the stages, in the coordinates of a drawing of `WIDTH` by `HEIGHT`.

    Attributes:
        points: of the error.
        line: through them, `x,y` apart by spaces; `band` from the noise to the limit.
        ticks: heights and powers of ten; `stages` places and names.
    """

    points: list[GrowthPoint]
    line: str
    band: str
    ticks: list[tuple[float, str]]
    stages: list[tuple[float, str]]


@dataclass(frozen=True)
class MaskTiles:
    """The intended mask and the observed ones of a pass, a row of tiles a batch row.

    Attributes:
        picture: all tiles.
        columns: what each column of tiles is.
        wrong: for each column the violations of each row.
        step: queries and keys that a cell stands for.
        rows: how many there are.
    """

    picture: Picture
    columns: list[str]
    wrong: list[list[int]]
    step: int
    rows: int


def operator_grid(rows: Sequence[TapResult]) -> OperatorGrid | None:
    """Return layers by operators of one run; of several steps the worst."""
    cells: dict[tuple[int, str], TapResult] = {}
    shown = set()
    for row in rows:
        kind, layer = split_name(row.tap)
        if layer is None:
            continue
        shown.add(kind)
        if (layer, kind) not in cells or _worse(row, cells[layer, kind]):
            cells[layer, kind] = row
    if not cells:
        return None
    names = [kind for kind in AXES if kind in shown]
    layers = sorted({layer for layer, _ in cells})
    rho = np.full((len(layers), len(names)), np.nan)
    wrong = np.zeros(rho.shape, bool)
    figures: list[list[str]] = []
    for i, layer in enumerate(layers):
        for j, name in enumerate(names):
            if (layer, name) not in cells:
                figures.append([])
                continue
            row = cells[layer, name]
            rho[i, j] = math.inf if math.isnan(row.rho) else row.rho
            wrong[i, j] = not row.passed
            figures.append([_short(row.rho), _short(row.error), *_words(row)])
    picture = _single(rho_codes(rho), marks(wrong, strip=True))
    return OperatorGrid(picture, names, [_label(kind) for kind in names], layers, figures)


def _label(kind: str) -> str:
    """Shorten a kind of tap to a column's heading: `∂ q_proj`, `∂W q_proj` for the weight's."""
    if not kind.startswith("grad."):
        return kind.removeprefix("layers.")
    parts = kind.split(".")
    return f"∂W {parts[-2]}" if parts[-1] == "weight" else f"∂ {parts[-1]}"


def layer_of(row: TapResult) -> int:
    """Return the layer a row is of, -1 for none."""
    layer = split_name(row.tap)[1]
    return -1 if layer is None else layer


def _worse(row: TapResult, than: TapResult) -> bool:
    return (not row.passed, not row.rho <= than.rho) > (not than.passed, False)


def _words(row: TapResult) -> list[str]:
    """Return where a failing tap is worst and what else is wrong with it."""
    if row.passed:
        return []
    return [*([place(row)] if row.worst is not None else []), *row.problems[:2]]


def _short(value: float) -> str:
    return f"{value:.2e}"


def outside_layers(rows: Sequence[TapResult]) -> list[TapResult]:
    """Return the taps of no layer, of several steps the worst."""
    found: dict[str, TapResult] = {}
    for row in rows:
        alone = split_name(row.tap)[1] is None
        if alone and (row.tap not in found or _worse(row, found[row.tap])):
            found[row.tap] = row
    return list(found.values())


def token_grid(grid: ErrorGrid, limit: float) -> TokenGrid:
    """Return stages by tokens of one run; rows of the batch stand side by side, one gap apart."""
    stages, batch, columns = grid.rho.shape
    gap = np.full((stages, 1), np.nan)
    blocks: list[np.ndarray] = []
    for b in range(batch):
        blocks += [grid.rho[:, b], gap]
    rho = np.concatenate(blocks[:-1], axis=1)
    taps = np.concatenate([grid.tap[:, b] for b in range(batch)], axis=1)
    return TokenGrid(
        _single(rho_codes(rho), marks(rho > limit, strip=True)),
        _single(taps, None),
        names=grid.names,
        step=grid.step,
        columns=columns,
        batch=batch,
        stages=stages,
        beyond=int((rho > limit).sum()),
    )


def _single(codes: np.ndarray, wrong: str | None) -> Picture:
    return Picture(picture(codes), wrong, 1, 1, codes.shape[1], codes.shape[0])


# No stage's last: they stand beside the data flow.
LEFT_OUT = {*CACHE_TAPS, "layers.attn_probs"}


def growth(rows: Sequence[TapResult], stages: int) -> Growth | None:
    """Return the error of each stage's last tap and the noise there, as points of a drawing.

    The error is that of the token nearest its limit: above the band is beyond the limit.
    """
    last: dict[int, TapResult] = {}
    for row in rows:
        kind, layer = split_name(row.tap)
        if (layer is None and kind not in ("embed", "norm")) or kind in LEFT_OUT:
            continue
        stage = stage_of(row.tap, stages - 2)
        if stage not in last or row.tap != last[stage].tap or _worse(row, last[stage]):
            last[stage] = row
    points = [
        GrowthPoint(
            stage, row.tap, row.rho * row.noise, row.noise, row.noise * row.limit, row.passed
        )
        for stage, row in sorted(last.items())
    ]
    points = [p for p in points if 0 < p.noise < math.inf]
    return _draw(points) if len(points) > 1 else None


# What is left free around, so that a point at an edge is whole.
WIDTH, HEIGHT, EDGE = 720, 220, 8


def _draw(points: list[GrowthPoint]) -> Growth:
    """Place points on a canvas of `WIDTH` by `HEIGHT`, logarithmic upwards."""
    exact = min(p.noise for p in points) * 1e-3
    shown = [v for p in points for v in (p.error, p.noise, p.limit) if exact < v < 1e30]
    low = math.floor(math.log10(max(min(shown), exact)))
    high = math.ceil(math.log10(max(shown)))
    high = max(high, low + 1)
    first, last = points[0].stage, points[-1].stage

    def x(stage: int) -> float:
        return round(EDGE + (WIDTH - 2 * EDGE) * (stage - first) / max(last - first, 1), 1)

    def y(value: float) -> float:
        at = math.log10(min(max(value, 10.0**low), 10.0**high)) if value == value else high
        return round(EDGE + (HEIGHT - 2 * EDGE) * (high - at) / (high - low), 1)

    placed = [replace(p, x=x(p.stage), y=y(p.error)) for p in points]
    upper = [f"{p.x},{y(p.limit)}" for p in placed]
    lower = [f"{p.x},{y(p.noise)}" for p in reversed(placed)]
    step = max(1, (high - low) // 6)
    every = max(1, (last - first) // 12)
    return Growth(
        points=placed,
        line=" ".join(f"{p.x},{p.y}" for p in placed),
        band=" ".join([*upper, *lower]),
        ticks=[(y(10.0**e), f"1e{e}") for e in range(low, high + 1, step)],
        stages=[(p.x, _stage(p)) for p in placed if (p.stage - first) % every == 0],
    )


def _stage(point: GrowthPoint) -> str:
    layer = split_name(point.name)[1]
    return point.name if layer is None else str(layer)


def sheet(maps: AttentionImages) -> Picture:
    """Return the maps of a layer as one sprite: a row of tiles a head, JAX, PyTorch, difference."""
    tiles, wrong = [], []
    for weights, cells in zip(maps.weights, maps.cells, strict=True):
        hidden = cells == HIDDEN
        unseen = hidden | (cells == LEAKED)  # to the reference a leak is a hidden cell
        subject, reference, gap = weights
        tiles.append(
            [
                np.where(hidden, NOTHING, subject),
                np.where(unseen, NOTHING, reference),
                np.where(hidden, NOTHING, gap),
            ]
        )
        bad = (cells == LEAKED) | (cells == LOST)
        wrong.append([bad, np.zeros_like(bad), bad])
    height, width = maps.cells.shape[1:]
    return Picture(
        picture(arrange_tiles(tiles)),
        marks(arrange_tiles(wrong)),
        3,
        len(maps.heads),
        width,
        height,
    )


def masks(snapshot: PassSnapshot) -> MaskTiles:
    """Return the intended mask and the observed ones of a pass, a row of tiles a batch row."""
    intended = np.where(snapshot.mask, VISIBLE, HIDDEN).astype(np.uint8)
    columns = [("intended", intended)]
    if snapshot.reported_mask is not None:
        live = snapshot.mask.any(2, keepdims=True)  # what a pad attends to is nobody's concern
        given = cell_states(snapshot.mask, snapshot.reported_mask & live, ~snapshot.reported_mask)
        columns.append(("observed: the mask it reports", given))
    if snapshot.observed_mask is not None:
        observed = snapshot.observed_mask
        since = f", from query {observed.start} on" if observed.start else ""
        name = f"observed: who carries weight in layer {observed.layer}{since}"
        columns.append((name, observed.cells))
    step = -(-max(intended.shape[1:]) // _MASK_SIDE)
    tiles, wrong = [], []
    for b in range(len(intended)):
        row = [fold_cells(cells[b], step) for _, cells in columns]
        tiles.append([np.where((c == HIDDEN) | (c == LOST), NOTHING, _SEEN) for c in row])
        wrong.append([(c == LEAKED) | (c == LOST) for c in row])
    height, width = tiles[0][0].shape
    violations = [np.isin(cells, (LEAKED, LOST)).sum((1, 2)).tolist() for _, cells in columns]
    tile = picture(arrange_tiles(tiles)), marks(arrange_tiles(wrong))
    return MaskTiles(
        Picture(*tile, len(columns), len(tiles), width, height),
        columns=[name for name, _ in columns],
        wrong=violations,
        step=step,
        rows=len(tiles),
    )
