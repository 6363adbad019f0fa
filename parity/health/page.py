"""The report of health as one HTML file that needs nothing else: no network, no other file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxllama.files.output import write_text
from parity.comparison.attention_image import (
    HIDDEN,
    LEAKED,
    LEVELS,
    LOST,
    NOTHING,
    SMALLEST_WEIGHT,
    cell_states,
    fold_cells,
)
from parity.health import grids
from parity.health.groups import FIGURE_WORDS
from parity.health.pictures import HeadPicture, ObservedRow
from parity.health.report import HealthReport, summary_line
from parity.health.rule import catalogue
from parity.report.figures import Picture
from parity.report.page_parts import MOST_BYTES, SPARE, digest_of, source, spelled_out, templates
from parity.report.sections import readable
from parity.report.sprites import VIOLATION, arrange_tiles, marks, palette, picture

PACKAGE = "parity.health"
# Cells a side of a mask, and the code of a cell that it shows.
_MASK_SIDE, _SEEN = 384, 2 + LEVELS // 3
# log10 of how far a row's weights are from adding up to 1.
_OFF_SCALE = (-9.0, 0.0)
# What a tile's markup takes.
_TILE_BYTES = 450


@dataclass(frozen=True)
class FlaggedHead:
    """A head's map in full, and beside it how far its rows are from adding up to 1."""

    head: HeadPicture
    sprite: int
    off_sprite: int


@dataclass(frozen=True)
class MaskTile:
    """A row's mask as intended and as observed."""

    row: int
    sprite: int
    step: int
    leaked: int


@dataclass(frozen=True)
class LayerSheet:
    """The first heads of a layer's `of`, small."""

    layer: int
    heads: int
    of: int
    sprite: int


class HealthPage:
    """Gathers pictures, and as many as there is room for.

    Args:
        report: what is to be shown.
        room: bytes for all pictures.
    """

    def __init__(self, report: HealthReport, room: int) -> None:
        self.report, self._room = report, room
        self.sprites: list[Picture] = []
        self.left_out: list[str] = []
        self.grids = [(grid, self._keep(grid.picture)) for grid in grids.head_grids(report)]
        compared = [] if report.groups is None else grids.group_grids(report.groups)
        self.groups = [(grid, self._keep(grid.picture)) for grid in compared]
        self.charts = grids.layer_charts(report)
        kept = report.pictures
        self.masks = [
            self._mask(row, one)
            for row, one in sorted(
                kept.masks.items(), key=lambda pair: (not _leaks(pair[1]).any(), pair[0])
            )
        ]
        self.flagged = list(filter(None, map(self._flagged, kept.flagged)))
        self.sheets = list(filter(None, (self._sheet(layer) for layer in sorted(kept.sheets))))

    @property
    def all_grids(self) -> list[tuple[grids.HeadGrid, int]]:
        """Return the grids in the order of their numbers, those of two groups last."""
        return [*self.grids, *self.groups]

    def _keep(self, made: Picture) -> int:
        self.sprites.append(made)
        self._room -= made.bytes + _TILE_BYTES
        return len(self.sprites) - 1

    def _fits(self, made: Picture, what: str) -> bool:
        if made.bytes + _TILE_BYTES > self._room:
            self.left_out.append(what)
            return False
        return True

    def _mask(self, row: int, one: ObservedRow) -> MaskTile:
        step = -(-len(one.intended) // _MASK_SIDE)
        leaks = _leaks(one)
        nothing = np.zeros_like(leaks)
        lost = one.intended & ~one.observed
        folded = [
            fold_cells(cell_states(one.intended, nothing, nothing), step),
            fold_cells(cell_states(one.intended, leaks, lost), step),
        ]
        tiles = [np.where((c == HIDDEN) | (c == LOST), NOTHING, _SEEN) for c in folded]
        wrong = [np.isin(c, (LEAKED, LOST)) for c in folded]
        height, width = tiles[0].shape
        made = Picture(
            picture(arrange_tiles([tiles])), marks(arrange_tiles([wrong])), 2, 1, width, height
        )
        return MaskTile(row, self._keep(made), step, int(leaks.sum()))

    def _flagged(self, head: HeadPicture) -> FlaggedHead | None:
        hidden = head.cells == HIDDEN
        codes = np.where(hidden, NOTHING, head.weights)
        height, width = codes.shape
        wrong = marks((head.cells == LEAKED) | (head.cells == LOST))
        made = Picture(picture(codes), wrong, 1, 1, width, height)
        if not self._fits(made, f"layer {head.layer}, head {head.head}"):
            return None
        low, high = _OFF_SCALE
        with np.errstate(divide="ignore"):
            at = (np.log10(head.off) - low) / (high - low)
        off = np.where(at < 0, 1, 2 + np.round(np.clip(at, 0, 1) * LEVELS))
        off = np.where(head.off == 0, 0, off).astype(np.uint8)[:, None]
        strip = Picture(picture(off), None, 1, 1, 1, height)
        return FlaggedHead(head, self._keep(made), self._keep(strip))

    def _sheet(self, layer: int) -> LayerSheet | None:
        codes, cells = self.report.pictures.sheets[layer], self.report.pictures.cells[layer]
        tiles = [np.where(c == HIDDEN, NOTHING, w) for w, c in zip(codes, cells, strict=True)]
        height, width = tiles[0].shape
        wrong = marks(arrange_tiles([[c == LEAKED for c in cells]]))
        made = Picture(picture(arrange_tiles([tiles])), wrong, len(tiles), 1, width, height)
        if not self._fits(made, f"layer {layer}"):
            return None
        figures = self.report.layers[layer].heads
        of = len(tiles) if figures is None else len(figures.entropy)
        return LayerSheet(layer, len(tiles), of, self._keep(made))

    def data(self) -> dict[str, Any]:
        """Return what the script needs to say what the pointer is on."""
        rows = {0, *(m.row for m in self.masks), *(f.head.row for f in self.flagged)}
        texts = self.report.texts
        return {
            "palette": palette(),
            "levels": LEVELS,
            "smallest": SMALLEST_WEIGHT,
            "off": _OFF_SCALE,
            "texts": {
                "text": {
                    str(row): [readable(text) for text in texts[row]]
                    for row in sorted(rows)
                    if row < len(texts)
                }
            },
            "grids": [{"title": g.kind.title, "values": g.values} for g, _ in self.all_grids],
        }


def _leaks(one: ObservedRow) -> np.ndarray:
    return one.observed & ~one.intended


def write(report: HealthReport, path: Path) -> None:
    """Write a report to `path`, whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    write_text(path, page(report))


def page(report: HealthReport) -> str:
    """Return the report as one self-contained document of at most `MOST_BYTES`."""
    room = MOST_BYTES - SPARE
    while True:
        text = _render(HealthPage(report, room), report)
        excess = len(text.encode()) - MOST_BYTES
        if excess <= 0 or room <= 0:
            return text
        room -= excess + SPARE


def _render(model: HealthPage, report: HealthReport) -> str:
    script = source("tiles.js") + source("health.js", PACKAGE)
    return (
        templates(PACKAGE)
        .get_template("health.html")
        .render(
            report=report,
            headline=summary_line(report),
            model=model,
            sprites=model.sprites,
            rules={name: file.RULE for name, file in catalogue().items()},
            drawing=grids,
            figure_words=FIGURE_WORDS,
            data=spelled_out(model.data()),
            violation=VIOLATION,
            style=source("report.css") + source("health.css", PACKAGE),
            script=script,
            script_digest=digest_of(script),
        )
    )
