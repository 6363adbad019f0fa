"""Grids of layers by heads, and lines over layers, for a page; every scale is fixed.

Shapes: L layers, N heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from parity.comparison.attention_image import LEVELS, NO_NUMBER, NOTHING
from parity.health.groups import FIGURE_WORDS, GroupComparison
from parity.health.report import HealthReport
from parity.health.rules import entropy_collapse, max_logit, row_sum, single_column
from parity.report.figures import Picture
from parity.report.sprites import marks, picture

Wrong = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class GridKind:
    """A figure that is drawn layer by head.

    Attributes:
        name: of the figure.
        title: on the page.
        said: what its scale goes from and to, in words that hold in the dark, too.
        low, high: ends of its scale; of powers of ten where `log`.
        log: whether it is logarithmic.
        wrong: which values are marked.
    """

    name: str
    title: str
    said: str
    low: float
    high: float
    log: bool = False
    wrong: Wrong = np.isnan


def _none(values: np.ndarray) -> np.ndarray:
    return np.zeros(values.shape, bool)


KINDS = (
    GridKind("entropy", "entropy", "from peaked to uniform", 0, 1, wrong=_none),
    GridKind("lazy_k", "lazy k", "from one singular value to 512", 0, 2.71, True, _none),
    GridKind("sink", "sink", "to all on the first token", 0, 1, wrong=_none),
    GridKind("leakage", "leakage", "any is marked", -8, 2, True, lambda v: v > 0),
    GridKind("max_logit", "largest score", "to 1000", 0, 3, True, lambda v: v > max_logit.LIMIT),
    GridKind("peaked", "peaked queries", "to all", 0, 1, wrong=_none),
    GridKind("column", "largest column", "to all on one key", 0, 1, wrong=_none),
    GridKind("reach", "reach", "1 to 10,000 tokens", 0, 4, True, _none),
    GridKind("nearest", "nearest head", "from alike to disjoint", 0, 1, wrong=_none),
    GridKind("row_sum", "row sums off", "1e-9 to 1", -9, 0, True, _none),
)
_OVER_MEDIAN = "over the median, 1e-3 to 1e3"
GRADIENT_KINDS = (
    GridKind(
        "query", "gradient of queries", "over the median head, 1e-3 to 1e3", -3, 3, True, _none
    ),
    GridKind("key", "gradient of keys", "the same", -3, 3, True, _none),
    GridKind("value", "gradient of values", "the same", -3, 3, True, _none),
)


@dataclass(frozen=True)
class HeadGrid:
    """One figure, layer by head.

    Attributes:
        kind: which.
        picture: codes.
        values: line by line, for the pointer; None where there is none.
        marked: how many cells are.
    """

    kind: GridKind
    picture: Picture
    values: list[float | None]
    marked: int

    @property
    def spoken(self) -> str:
        """What it shows, for who does not see it."""
        known = [value for value in self.values if value is not None]
        range_ = f"{min(known):g} to {max(known):g}" if known else "not known"
        marked = f", {self.marked} of {len(self.values)} marked" if self.marked else ""
        return f"{self.kind.title} of each head in each layer: {range_}{marked}"


def head_grids(report: HealthReport) -> list[HeadGrid]:
    """Return the grids of attention, then those of gradients, as far as there are figures."""
    found = []
    shown = [one.heads for one in report.layers]
    if all(one is not None for one in shown):
        for kind in KINDS:
            values = np.stack([getattr(one, kind.name) for one in shown]).astype(np.float64)
            found.append(_grid(kind, values, kind.wrong(values) | _found(report, kind)))
    for kind in GRADIENT_KINDS if report.gradients else ():
        values = np.stack([getattr(one, kind.name) for one in report.gradients or ()])
        known = values[np.isfinite(values)]
        median = float(np.median(known)) if known.size else 0.0
        if median > 0:
            found.append(_grid(kind, values / median, _none(values)))
    return found


def group_grids(groups: GroupComparison) -> list[HeadGrid]:
    """Return for each figure that two groups are compared by how certain its differences are."""
    found = []
    for name, p in groups.p.items():
        wrong = np.zeros(p.shape, bool)
        for one in groups.differences:
            if one.figure == name:
                wrong[one.layer, one.head] = True
        kind = GridKind(
            f"p_{name}", f"{FIGURE_WORDS[name]}, p", "from 1 to 1e-4; marked: significant", 0, 4
        )
        grid = _grid(kind, -np.log10(p), wrong)
        values = [None if math.isnan(v) else float(f"{v:.2g}") for v in p.ravel()]
        found.append(replace(grid, values=values))
    return found


# Which figure's grid marks the heads that a rule names.
_MARKED = {
    "peaked": entropy_collapse.RULE.id,
    "entropy": entropy_collapse.RULE.id,
    "column": single_column.RULE.id,
    "row_sum": row_sum.RULE.id,  # whose limit is the dtype's
}


def _found(report: HealthReport, kind: GridKind) -> np.ndarray:
    heads = report.layers[0].heads
    assert heads is not None
    wrong = np.zeros((len(report.layers), len(heads.entropy)), bool)
    for one in report.findings:
        if one.rule == _MARKED.get(kind.name) and one.layer is not None:
            wrong[one.layer, list(one.heads)] = True
    return wrong


def _grid(kind: GridKind, values: np.ndarray, wrong: np.ndarray) -> HeadGrid:
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = np.log10(values) if kind.log else values
        at = (scaled - kind.low) / (kind.high - kind.low)
    codes = np.where(at < 0, 1.0, 2 + np.round(np.clip(at, 0, 1) * LEVELS))
    codes = np.where(values == 0, 0.0, codes)
    codes = np.where(np.isinf(values), float(NO_NUMBER), codes)
    codes = np.where(np.isnan(values), float(NOTHING), codes).astype(np.uint8)
    drawn = Picture(picture(codes), marks(wrong, strip=True), 1, 1, codes.shape[1], codes.shape[0])
    said = [None if math.isnan(v) else float(f"{v:.3g}") for v in values.ravel()]
    return HeadGrid(kind, drawn, said, int(wrong.sum()))


# What is left free around, so that a point at an edge is whole.
WIDTH, HEIGHT, EDGE = 720, 180, 8
_COLOURS = ("one", "two", "three")


@dataclass(frozen=True)
class Line:
    """A figure over the layers.

    Attributes:
        name: of it.
        style: class of the line.
        points: `x,y` apart by spaces.
        dots: x, y and what the pointer reads.
    """

    name: str
    style: str
    points: str
    dots: list[tuple[float, float, str]]


@dataclass(frozen=True)
class LayerChart:
    """Lines over layers on one axis.

    Attributes:
        title: of the chart.
        lines: on it.
        ticks: heights and what they say.
        layers: places and numbers.
    """

    title: str
    lines: list[Line]
    ticks: list[tuple[float, str]]
    layers: list[tuple[float, str]]

    @property
    def spoken(self) -> str:
        """What it shows, for who does not see it: where each line begins and ends."""
        ends = [f"{line.dots[0][2]}, {line.dots[-1][2]}" for line in self.lines if line.dots]
        return f"{self.title} {'; '.join(ends)}"


def layer_charts(report: HealthReport) -> list[LayerChart]:
    """Return the charts of token states, of sizes, and of gradients."""
    states = [one.states for one in report.layers]
    charts = []
    if all(one is not None for one in states):
        shares = {
            "rank residual": [s.residual for s in states if s],
            "mean cosine": [s.cosine for s in states if s],
            "least residual of values": [
                float(s.value_residual.min()) if s.value_residual.size else math.nan
                for s in states
                if s
            ],
        }
        charts.append(_chart("Do tokens still differ?", shares, 0.0, 1.0, log=False))
        sizes = {
            "added by the layer": [s.added for s in states if s],
            "growth": [s.growth for s in states if s],
        }
        if report.gradients:
            whole = np.array([g.whole for g in report.gradients])
            known = whole[np.isfinite(whole)]
            median = (float(np.median(known)) if known.size else 0.0) or 1.0
            sizes["gradients over the median"] = (whole / median).tolist()
        charts.append(_chart("Sizes, as ratios", sizes, -4.0, 4.0, log=True))
    return charts


def _chart(
    title: str, figures: dict[str, list[float]], low: float, high: float, *, log: bool
) -> LayerChart:
    count = max(map(len, figures.values()))

    def x(layer: int) -> float:
        return round(EDGE + (WIDTH - 2 * EDGE) * layer / max(count - 1, 1), 1)

    def y(value: float) -> float:
        at = math.log10(max(value, 1e-300)) if log else value
        at = min(max(at, low), high)
        return round(EDGE + (HEIGHT - 2 * EDGE) * (high - at) / (high - low), 1)

    lines = []
    for style, (name, values) in zip(_COLOURS, figures.items(), strict=False):
        dots = [
            (x(i), y(v), f"layer {i}: {name} {v:.3g}")
            for i, v in enumerate(values)
            if math.isfinite(v)
        ]
        lines.append(Line(name, style, " ".join(f"{a},{b}" for a, b, _ in dots), dots))
    marks_at: Sequence[float] = (
        range(int(low), int(high) + 1, 2) if log else (0, 0.25, 0.5, 0.75, 1)
    )
    ticks = [(y(10.0**t if log else t), f"1e{t:.0f}" if log else f"{t:g}") for t in marks_at]
    every = max(1, count // 15)
    return LayerChart(title, lines, ticks, [(x(i), str(i)) for i in range(0, count, every)])
