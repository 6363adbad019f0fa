"""The result as one HTML file that needs nothing else: no network, no other file.

What it holds is limited by its size alone: the verdict, the figures and the first failing layer
come before the maps of other passes, which are left out, and said to be, where room runs out.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from parity.comparison.attention_image import LEVELS, SMALLEST_WEIGHT, AttentionImages
from parity.comparison.snapshot import PassSnapshot
from parity.output_files import write_text
from parity.report import figures
from parity.report.figures import Picture
from parity.report.sprites import VIOLATION, palette
from parity.report.wording import DIFFERENCES, KINDS, OWN_RUNS, nearest, place, spread
from parity.result import Result, TapResult

# A report is to be mailed and attached.
MOST_BYTES = 5_000_000
# Taken off beyond the excess when a page came out too long; and what a tile's markup takes.
_SPARE = 50_000
_TILE_BYTES = 450


def write(result: Result, path: Path) -> None:
    """Write a result's report to `path`, whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    write_text(path, page(result))


def page(result: Result) -> str:
    """Return the report: one self-contained HTML document of at most `MOST_BYTES`."""
    room = MOST_BYTES
    while True:
        text = _rendered(_Model(result, room), result)
        excess = len(text.encode()) - MOST_BYTES
        if excess <= 0 or room <= 0:
            return text
        room -= excess + _SPARE


def _rendered(model: _Model, result: Result) -> str:
    style, script = (_source(f"report.{kind}") for kind in ("css", "js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        _templates()
        .get_template("report.html")
        .render(
            result=result,
            first=result.first_divergence,
            cause=result.cause,
            kinds=KINDS,
            differences=DIFFERENCES,
            runs=model.runs,
            matrix=model.matrix(),
            lines=model.lines,
            scenarios=model.scenarios,
            passes=model.passes(),
            sprites=model.sprites,
            left_out=model.left_out,
            where=_where(result),
            data=model.data(),
            start=model.start,
            logits=_logits(result),
            overrides=_overrides(result),
            drawing=figures,
            scales=_scales(),
            violation=VIOLATION,
            style=style,
            script=script,
            script_digest=digest,
        )
    )


def _source(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("parity.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "figure": lambda value: f"{value:.2e}",
        "short": lambda value: f"{value:.3g}",
        "place": place,
        "spread": spread,
        "token": readable,
        "bar": _bar,
    }
    return environment


class _Model:
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
        self.lines = list(dict.fromkeys((run["lane"], run["mode"]) for run in self.runs))
        self.scenarios = list(dict.fromkeys(run["scenario"] for run in self.runs))
        self.start = self._start()

    def _start(self) -> dict[str, Any]:
        """Return the run that is shown first: where the divergence is, or the first."""
        first = self.result.first_divergence
        if first is not None:
            wanted = first.row.lane, first.row.scenario, first.row.mode
            for run in self.runs:
                if (run["lane"], run["scenario"], run["mode"]) == wanted:
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
    ) -> dict[str, Any]:
        lane, scenario, mode = group
        worst = max(rows, key=lambda r: (not r.passed, nearest(r)[0]))
        operators = figures.operator_grid(rows)
        tokens = None
        if snapshot is not None and scenario in self.result.texts:
            tokens = figures.token_grid(snapshot.grids[mode], worst.limit)
            tokens["taps"] = self._sprite(tokens["taps"])
        for grid in (operators, tokens):
            if grid is not None:
                grid["sprite"] = self._sprite(grid["picture"])
        layers = max(map(figures.layer_of, rows))
        return {
            "id": f"r{number}",
            "lane": lane,
            "scenario": scenario,
            "mode": mode,
            "pass": snapshot.name if snapshot is not None else "",
            "worst": worst,
            "nearest": nearest(worst),
            "error": max(row.error for row in rows),
            "failed": sum(not row.passed for row in rows),
            "taps": len(rows),
            "passed": all(row.passed for row in rows),
            "operators": operators,
            "tokens": tokens,
            "growth": figures.growth(rows, layers + 3),
            "outside": figures.outside_layers(rows),
        }

    def matrix(self) -> dict[tuple[str, str], dict[str, dict[str, Any]]]:
        """Return the runs by dtype and mode, then scenario."""
        found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
        for run in self.runs:
            found.setdefault((run["lane"], run["mode"]), {})[run["scenario"]] = run
        return found

    def passes(self) -> list[dict[str, Any]]:
        """Return masks and attention maps by pass, those of the run shown first before others."""
        ordered = sorted(self.result.snapshots, key=lambda e: e.name != self.start["pass"])
        room = self.room - sum(s.bytes for s in self.sprites) - len(json.dumps(self.data()))
        found = []
        for snapshot in ordered:
            mask = figures.masks(snapshot)
            mask["sprite"] = self._sprite(mask["picture"])
            room -= mask["picture"].bytes
            sheets = []
            for what, maps in _sheets(snapshot, in_full=snapshot is ordered[0]):
                made = figures.sheet(maps)
                size = made.bytes + 3 * len(maps.heads) * _TILE_BYTES
                if size > room:
                    self.left_out.append(f"{snapshot.name} layer {maps.layer}")
                    continue
                room -= size
                sheets.append({"maps": maps, "sprite": self._sprite(made), "what": what})
            found.append({"snapshot": snapshot, "mask": mask, "sheets": sheets})
        return found

    def data(self) -> dict[str, Any]:
        """Return what the script needs to say what the pointer is on."""
        said = ["figures"] if self.room > 0 else []
        return {
            "palette": palette(),
            "levels": LEVELS,
            "smallest": SMALLEST_WEIGHT,
            "rho": figures.RHO_SCALE,
            "texts": {
                name: [[readable(text) for text in row] for row in rows]
                for name, rows in self.result.texts.items()
            },
            "runs": {
                run["id"]: {
                    "scenario": run["scenario"],
                    "limit": run["worst"].limit,
                    "operators": _picked(run["operators"], "kinds", "layers", *said),
                    "tokens": _picked(
                        run["tokens"], "names", "step", "columns", "batch", "stages", "taps"
                    ),
                }
                for run in self.runs
            },
        }


def _picked(grid: dict[str, Any] | None, *names: str) -> dict[str, Any] | None:
    return None if grid is None else {name: grid[name] for name in names}


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


def _logits(result: Result) -> list[dict[str, Any]]:
    """Return the logits' figures by dtype: the worst of the subject's own runs, flips of all."""
    rows = [row for row in result.rows if row.tap == "logits" and row.mode in OWN_RUNS]
    found = []
    for lane in dict.fromkeys(row.lane for row in rows):
        ours = [row for row in rows if row.lane == lane]
        facts = [row.facts for row in ours]
        worst = {n: max(f.get(n, 0.0) for f in facts) for n in ("kl_max", "shift", "range")}
        flips = {n: sum(f.get(n, 0.0) for f in facts) for n in ("top1_flips", "unexplained_flips")}
        passed = all(row.passed for row in ours)  # else more than rounding is in the flips
        found.append({"lane": lane, "passed": passed, **worst, **flips})
    return found


def _bar(error: float) -> float:
    """Return how long an error's bar is, of 1: logarithmic from 1e-17 to 10."""
    if not error < 10:  # NaN, too
        return 1.0
    return round(max(0.0, (math.log10(max(error, 1e-17)) + 17) / 18), 3)


def _where(result: Result) -> str:
    """Name the place where the first divergence is worst, with what its token reads."""
    first = result.first_divergence
    if first is None or first.row.worst is None:
        return ""
    said, index = place(first.row), first.row.worst.index
    texts = result.texts.get(first.row.scenario, [])
    if first.row.mode == "decode" or "T" not in index or not index["B"] < len(texts):
        return said
    row = texts[index["B"]]
    named = {"token": index["T"], "query": index["T"], "key": index.get("S", 0)}
    parts = []
    for part in said.split(", "):
        at = named.get(part.split()[0], len(row))
        parts.append(f"{part} “{readable(row[at])}”" if at < len(row) else part)
    return ", ".join(parts)


def _overrides(result: Result) -> list[tuple[str, Any, Any]]:
    """Return what the subject's configuration has otherwise than the checkpoint's."""
    configured = result.checkpoint.get("config", {})
    subject = result.checkpoint.get("subject_config", {})
    return [
        (name, configured.get(name), value)
        for name, value in subject.items()
        if configured.get(name) != value
    ]


def _scales() -> dict[str, list[tuple[str, float]]]:
    """Return the marks beside the two colour scales, with their place from 0 to 1."""
    low, high = figures.RHO_SCALE
    return {
        "rho": [(f"1e{e}", (e - low) / (high - low)) for e in range(int(low), int(high) + 1, 4)],
        "weight": [(f"1e{e}", (e + 4) / 4) for e in range(-4, 1)],
    }


_SHOWN_AS = {"\n": "↵", "\t": "⇥", " ": "␣", "\r": "␍"}


def readable(text: str) -> str:
    """Return a token's text with what cannot be seen, or would rearrange a line, spelled out."""
    return "".join(
        _SHOWN_AS.get(c) or (f"\\u{ord(c):04x}" if unicodedata.category(c)[0] == "C" else c)
        for c in text
    )
