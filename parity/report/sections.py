"""What the page shows of each run and each pass, and which pictures it takes."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from parity.comparison.attention_image import LEVELS, SMALLEST_WEIGHT, AttentionImages
from parity.comparison.snapshot import PassSnapshot
from parity.report import figures
from parity.report.figures import Picture
from parity.report.sprites import palette
from parity.report.wording import nearest
from parity.result import Result, TapResult

# What a tile's markup takes.
_TILE_BYTES = 450


@dataclass(frozen=True)
class RunSection:
    """One run, a dtype's of a scenario in a mode, as the page shows it.

    Attributes:
        id: of its element.
        lane, scenario, mode: the run.
        pass_name: of the snapshot that its maps are from; empty without one.
        rows: all its taps.
        worst: the one nearest its limit, or beyond it.
        operators, tokens, growth: its drawings.
        operators_sprite, tokens_sprite, taps_sprite: numbers of their pictures.
    """

    id: str
    lane: str
    scenario: str
    mode: str
    pass_name: str
    rows: list[TapResult]
    worst: TapResult
    operators: figures.OperatorGrid | None
    operators_sprite: int | None
    tokens: figures.TokenGrid | None
    tokens_sprite: int | None
    taps_sprite: int | None
    growth: figures.Growth | None

    @property
    def nearest(self) -> tuple[float, float, float, str]:
        """The figure nearest its limit, see `parity.report.wording.nearest`."""
        return nearest(self.worst)

    @property
    def error(self) -> float:
        """The largest error of all taps."""
        return max(row.error for row in self.rows)

    @property
    def failed(self) -> int:
        """How many taps are beyond their limit."""
        return sum(not row.passed for row in self.rows)

    @property
    def passed(self) -> bool:
        """Whether none is."""
        return not self.failed

    @property
    def outside(self) -> list[TapResult]:
        """The taps of no layer."""
        return figures.outside_layers(self.rows)

    def data(self, *, figures: bool) -> dict[str, Any]:
        """Return what the page's script needs of it; `figures` for those on hover."""
        tokens, operators = self.tokens, self.operators
        return {
            "scenario": self.scenario,
            "limit": self.worst.limit,
            "operators": None
            if operators is None
            else {"kinds": operators.kinds, "layers": operators.layers}
            | ({"figures": operators.figures} if figures else {}),
            "tokens": None
            if tokens is None
            else {
                "names": tokens.names,
                "step": tokens.step,
                "columns": tokens.columns,
                "batch": tokens.batch,
                "stages": tokens.stages,
                "taps": self.taps_sprite,
            },
        }


@dataclass(frozen=True)
class Sheet:
    """Attention maps of a layer, the number of their picture, and why they are shown."""

    maps: AttentionImages
    sprite: int
    what: str


@dataclass(frozen=True)
class PassSection:
    """What the page shows of one pass: its masks and its attention maps."""

    snapshot: PassSnapshot
    mask: figures.MaskTiles
    mask_sprite: int
    sheets: list[Sheet]


def _sheets(snapshot: PassSnapshot, *, in_full: bool) -> Iterator[tuple[str, AttentionImages]]:
    """Yield a pass's maps: the first failing layer, its flagged heads in full, then the others."""
    failing, details = snapshot.failed_layer, snapshot.details
    folded = failing in snapshot.sheets and snapshot.sheets[failing].step > 1
    if failing in snapshot.sheets:
        yield "the first failing layer", snapshot.sheets[failing]
    if details is not None and in_full and folded:
        yield "the heads most at odds", details
    for layer, maps in sorted(snapshot.sheets.items()):
        if layer != failing:
            yield "", maps


class PageModel:
    """Gathers the figures, and as many attention maps as there is room for.

    Args:
        result: what is to be shown.
        room: bytes for all of it; where there is none left, figures on hover are the first to go.
    """

    def __init__(self, result: Result, room: int) -> None:
        self.result, self.room = result, room
        self.sprites: list[Picture] = []
        self.left_out: list[str] = []
        groups: dict[tuple[str, str, str], list[TapResult]] = {}
        for row in result.rows:
            groups.setdefault((row.lane, row.scenario, row.mode), []).append(row)
        snapshots = {(e.lane, e.scenario, mode): e for e in result.snapshots for mode in e.grids}
        self.runs = [
            self._run(number, group, rows, snapshots.get(group))
            for number, (group, rows) in enumerate(groups.items())
        ]
        self.lines = list(dict.fromkeys((run.lane, run.mode) for run in self.runs))
        self.scenarios = list(dict.fromkeys(run.scenario for run in self.runs))
        self.start = self._start()

    def _start(self) -> RunSection:
        """Return the run that is shown first: where the divergence is, or the first."""
        first = self.result.first_divergence
        if first is not None:
            wanted = first.row.lane, first.row.scenario, first.row.mode
            for run in self.runs:
                if (run.lane, run.scenario, run.mode) == wanted:
                    return run
        return self.runs[0]

    def _sprite(self, made: Picture) -> int:
        self.sprites.append(made)
        return len(self.sprites) - 1

    def _run(
        self,
        number: int,
        group: tuple[str, str, str],
        rows: list[TapResult],
        snapshot: PassSnapshot | None,
    ) -> RunSection:
        lane, scenario, mode = group
        worst = max(rows, key=lambda r: (not r.passed, nearest(r)[0]))
        operators, tokens = figures.operator_grid(rows), None
        if snapshot is not None and scenario in self.result.texts:
            tokens = figures.token_grid(snapshot.grids[mode], worst.limit)
        return RunSection(
            id=f"r{number}",
            lane=lane,
            scenario=scenario,
            mode=mode,
            pass_name=snapshot.name if snapshot is not None else "",
            rows=rows,
            worst=worst,
            operators=operators,
            operators_sprite=None if operators is None else self._sprite(operators.picture),
            tokens=tokens,
            taps_sprite=None if tokens is None else self._sprite(tokens.taps),
            tokens_sprite=None if tokens is None else self._sprite(tokens.picture),
            growth=figures.growth(rows, max(map(figures.layer_of, rows)) + 3),
        )

    def matrix(self) -> dict[tuple[str, str], dict[str, RunSection]]:
        """Return the runs by dtype and mode, then scenario."""
        found: dict[tuple[str, str], dict[str, RunSection]] = {}
        for run in self.runs:
            found.setdefault((run.lane, run.mode), {})[run.scenario] = run
        return found

    def passes(self) -> list[PassSection]:
        """Return masks and attention maps by pass, those of the run shown first before others."""
        ordered = sorted(self.result.snapshots, key=lambda e: e.name != self.start.pass_name)
        room = self.room - sum(s.bytes for s in self.sprites) - len(json.dumps(self.data()))
        found = []
        for snapshot in ordered:
            mask = figures.masks(snapshot)
            mask_sprite = self._sprite(mask.picture)
            room -= mask.picture.bytes
            sheets = []
            for what, maps in _sheets(snapshot, in_full=snapshot is ordered[0]):
                made = figures.sheet(maps)
                size = made.bytes + 3 * len(maps.heads) * _TILE_BYTES
                if size > room:
                    self.left_out.append(f"{snapshot.name} layer {maps.layer}")
                    continue
                room -= size
                sheets.append(Sheet(maps, self._sprite(made), what))
            found.append(PassSection(snapshot, mask, mask_sprite, sheets))
        return found

    def data(self) -> dict[str, Any]:
        """Return what the script needs to say what the pointer is on."""
        return {
            "palette": palette(),
            "levels": LEVELS,
            "smallest": SMALLEST_WEIGHT,
            "rho": figures.RHO_SCALE,
            "subject": self.result.subject,
            "texts": {
                name: [[readable(text) for text in row] for row in rows]
                for name, rows in self.result.texts.items()
            },
            "runs": {run.id: run.data(figures=self.room > 0) for run in self.runs},
        }


_SHOWN_AS = {"\n": "↵", "\t": "⇥", " ": "␣", "\r": "␍"}


def readable(text: str) -> str:
    """Return a token's text with what cannot be seen, or would rearrange a line, spelled out."""
    return "".join(
        _SHOWN_AS.get(c) or (f"\\u{ord(c):04x}" if unicodedata.category(c)[0] == "C" else c)
        for c in text
    )
