"""Pictures of findings as SVG within a page, whose style sheet has the colours of both themes.

Shapes: T queries, S keys, L layers, N heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from html import escape

import numpy as np

# Of a cell: as intended, or seen where it may not be, or hidden where it should be seen.
SEEN, HIDDEN, LEAKED, LOST = "#", ".", "!", "-"
SIDE, WIDEST, FONT = 14, 300, 11


def mask(panels: Sequence[tuple[str, Sequence[str]]], label: str) -> str:
    """Draw masks beside each other, queries downwards and keys to the right.

    Args:
        panels: of each its title, and its rows of `SEEN`, `HIDDEN`, `LEAKED` and `LOST` [T][S].
        label: what is to be seen, for those who do not see it, too.
    """
    return _figure("masks", label, "".join(_panel(title, rows) for title, rows in panels))


def _panel(title: str, rows: Sequence[str]) -> str:
    cells = np.array([list(row) for row in rows])
    height, width = cells.shape
    side = min(SIDE, max(3, WIDEST // max(height, width)))
    parts = [_rect("ground", 0, 0, width * side, height * side)]
    for kind, state in (("seen", SEEN), ("leaked", LEAKED)):
        if (cells == state).any():
            parts.append(f'<path class="{kind}" d="{_runs(cells == state, side)}"/>')
    if side > 5:
        across = "".join(f"M{x * side} 0v{height * side}" for x in range(1, width))
        down = "".join(f"M0 {y * side}h{width * side}" for y in range(1, height))
        parts.append(f'<path class="rule" d="{across}{down}"/>')
    if (cells == LOST).any():
        parts.append(f'<path class="lost" d="{_frames(cells == LOST, side)}"/>')
    return f"<div><b>{escape(title)}</b>{_svg(parts, width * side, height * side)}</div>"


def _runs(where: np.ndarray, side: int) -> str:
    """Return a path around cells, a rectangle for each run of a row."""
    parts = []
    for y, row in enumerate(where):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(int), [0]])))
        for start, end in edges.reshape(-1, 2):
            width = (end - start) * side
            parts.append(f"M{start * side} {y * side}h{width}v{side}h{-width}z")
    return "".join(parts)


def _frames(where: np.ndarray, side: int) -> str:
    """Return a path around each cell, within it."""
    inner = f"h{side - 2}v{side - 2}h{2 - side}z"
    return "".join(f"M{x * side + 1} {y * side + 1}{inner}" for y, x in np.argwhere(where))


# Of a drawing of taps: pixels a tap, to the left, above, and high; powers of ten below the limit.
STEP, LEFT, TOP, HEIGHT, LOW = 9, 40, 8, 150, -2.0


def flow(names: Sequence[str], own: Sequence[float], alone: Sequence[float], label: str) -> str:
    """Draw how far each tap is from its limit, in the order in which they are computed.

    Args:
        names: of taps; a number in one is its layer.
        own: log10 of rho over its limit, of a run on the subject's own values; NaN where none is.
        alone: the same of each operator on the reference's values.
        label: as for `mask`.
    """
    high = max([2.0, *(v for v in (*own, *alone) if math.isfinite(v))])

    def y(power: float) -> float:
        return round(TOP + HEIGHT * (high - min(max(power, LOW), high)) / (high - LOW), 1)

    width, foot = LEFT + STEP * len(names) + 8, TOP + HEIGHT + 4
    parts = [*_powers(high, y, width)]
    for i, (name, ours, single) in enumerate(zip(names, own, alone, strict=True)):
        parts.append(_tap(LEFT + i * STEP, name, ours, single, y))
    for start, end, layer in _layers(names):
        x0, x1 = LEFT + start * STEP, LEFT + end * STEP - 2
        parts.append(f'<path class="axis" d="M{x0} {foot}h{x1 - x0}"/>')
        if x1 - x0 > 40:
            parts.append(_text((x0 + x1) / 2, foot + 13, f"layer {layer}", "middle"))
    beyond = [
        i for i, both in enumerate(zip(own, alone, strict=True)) if max(map(_shown, both)) > 0
    ]
    if beyond:
        x = LEFT + beyond[0] * STEP + 3.5
        after = x < width / 2
        parts.append(f'<path class="first" d="M{x} {foot + 2}v18"/>')
        said = f"first: {names[beyond[0]]}"
        parts.append(_text(x + (4 if after else -4), foot + 28, said, "start" if after else "end"))
    return _figure("flow", label, _svg(parts, width, foot + 34))


def _powers(high: float, y: Callable[[float], float], width: float) -> Iterator[str]:
    every = max(1, round((high - LOW) / 5))
    for power in range(math.ceil(LOW), math.floor(high) + 1):
        if power % every == 0 or power == 0:
            kind, name = ("grid", f"1e{power}") if power else ("limit", "limit")
            yield f'<path class="{kind}" d="M{LEFT - 4} {y(power)}H{width}"/>'
            yield _text(LEFT - 6, y(power) + 4, name, "end")


def _tap(x: float, name: str, ours: float, single: float, y: Callable[[float], float]) -> str:
    """Draw a tap: a bar for the run on its own values, a dot for the operator alone."""
    marks = ""
    if math.isfinite(ours):
        rest = max(round(TOP + HEIGHT - y(ours), 1), 1)
        marks += _rect("over" if ours > 0 else "under", x, y(ours), STEP - 2, rest)
    if math.isfinite(single):
        kind = "over" if single > 0 else "under"
        marks += f'<circle class="{kind} dot" cx="{x + 3.5}" cy="{y(single)}" r="3"/>'
    return _said(f"{name}: {_times(ours)}; {_times(single)} on the reference's values", marks)


def _shown(power: float) -> float:
    return power if math.isfinite(power) else -math.inf


def _times(power: float) -> str:
    return f"{10**power:.2g} times its limit" if math.isfinite(power) else "not run"


def _layers(names: Sequence[str]) -> list[tuple[int, int, str]]:
    """Return runs of one layer's taps: start, end and number."""
    found: list[tuple[int, int, str]] = []
    for i, name in enumerate(names):
        layer = next((part for part in name.split(".") if part.isdigit()), "")
        if found and found[-1][2] == layer:
            found[-1] = (found[-1][0], i + 1, layer)
        else:
            found.append((i, i + 1, layer))
    return [run for run in found if run[2]]


def heads(values: np.ndarray, wrong: np.ndarray, label: str) -> str:
    """Draw a figure of every head: layers downwards, heads to the right, dark the largest.

    Args:
        values: [L, N].
        wrong: what was found wrong, and is framed [L, N].
        label: as for `mask`.
    """
    side, left, top = 28, 50, 20
    layers, count = values.shape
    parts = [_text(left - 6, top - 6, "head", "end")]
    parts += [_text(left + (n + 0.5) * side, top - 6, f"{n}", "middle") for n in range(count)]
    shares = _shares(values)
    for i in range(layers):
        name = f"{i}" if i else "layer 0"
        parts.append(_text(left - 6, top + (i + 0.65) * side, name, "end"))
        for n in range(count):
            x, y = left + n * side + 2, top + i * side + 2
            cell = "cell wrong" if wrong[i, n] else "cell"
            marks = _rect("ground", x, y, side - 4, side - 4)
            marks += _rect(cell, x, y, side - 4, side - 4, shares[i, n])
            parts.append(_said(f"layer {i}, head {n}: {values[i, n]:.3g}", marks))
    return _figure("heads", label, _svg(parts, left + count * side + 2, top + layers * side + 2))


def _shares(values: np.ndarray) -> np.ndarray:
    """Return how dark values are: by their logarithms where they are far apart."""
    finite = np.where(np.isfinite(values), values, np.nan)
    if not np.isfinite(finite).any():
        return np.ones(values.shape)
    at = np.log10(np.maximum(np.abs(finite), 1e-30)) if _far_apart(values) else finite
    low = np.nanmin(at) if _far_apart(values) else min(0.0, np.nanmin(at))
    span = np.nanmax(at) - low
    return np.nan_to_num(0.06 + 0.94 * (at - low) / (span or 1.0), nan=1.0)


def _far_apart(values: np.ndarray) -> bool:
    size = np.abs(values[np.isfinite(values) & (values != 0)])
    return bool(size.size) and float(size.max()) > 50 * float(size.min())


def bars(rows: Sequence[tuple[str, float, bool]], label: str) -> str:
    """Draw values as bars: of each its name, itself, and whether it was found wrong."""
    left, width, pitch = 64, 240, 20
    values = np.array([value for _, value, _ in rows])
    parts = []
    for i, ((name, value, wrong), share) in enumerate(zip(rows, _shares(values), strict=True)):
        length = round(width * float(share), 1)
        parts.append(_text(left - 6, i * pitch + 14, name, "end"))
        parts.append(_rect("over" if wrong else "under", left, i * pitch + 3, length, pitch - 6))
        parts.append(_text(left + length + 5, i * pitch + 14, f"{value:.3g}", "start"))
    return _figure("bars", label, _svg(parts, left + width + 64, len(rows) * pitch))


LEVELS, HIDDEN_LEVELS = "0123456789", "abcdefghij"


def attention(rows: Sequence[str], label: str) -> str:
    """Draw a map of attention weights, queries downwards and keys to the right.

    Args:
        rows: of `LEVELS`, 9 the largest weight; of `HIDDEN_LEVELS` on keys that are hidden.
        label: as for `mask`.
    """
    side = max(4, WIDEST // len(rows))
    parts = [_rect("ground", 0, 0, len(rows[0]) * side, len(rows) * side)]
    for y, row in enumerate(rows):
        for x, level in enumerate(row):
            if level in HIDDEN_LEVELS:
                parts.append(_rect("leaked", x * side, y * side, side, side))
            elif level != "0":
                share = (LEVELS.index(level) + 1) / 10
                parts.append(_rect("cell", x * side, y * side, side, side, share))
    return _figure("map", label, _svg(parts, len(rows[0]) * side, len(rows) * side))


def _rect(kind: str, x: float, y: float, w: float, h: float, opacity: float | None = None) -> str:
    faded = "" if opacity is None else f' fill-opacity="{opacity:.2f}"'
    return f'<rect class="{kind}" x="{x}" y="{y}" width="{w}" height="{h}"{faded}/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>'


def _said(words: str, marks: str) -> str:
    return f"<g><title>{escape(words)}</title>{marks}</g>"


def _svg(parts: Sequence[str], width: float, height: float) -> str:
    size = f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}"'
    return f'<svg {size} aria-hidden="true" font-size="{FONT}">{"".join(parts)}</svg>'


def _figure(kind: str, label: str, inside: str) -> str:
    """Return a figure as one block of HTML in a Markdown page: a line, with no empty one in it."""
    said = escape(label)
    drawn = f'<div class="drawn" role="img" tabindex="0" aria-label="{said}">{inside}</div>'
    return f'<figure class="finding {kind}">{drawn}<figcaption>{said}</figcaption></figure>'
