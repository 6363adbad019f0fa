"""The result as one HTML file that needs nothing else: no network, no other file.

What it holds is limited by its size alone: the verdict, the figures and the first failing layer
come before the maps of other passes, which are left out, and said to be, where room runs out.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment

from jaxllama.files.output import write_text
from parity.comparison.quality import QualityReport
from parity.report import figures, spoken
from parity.report.environment import cost_line, plainly
from parity.report.page_parts import MOST_BYTES, SPARE, digest_of, source, spelled_out, templates
from parity.report.quality import ABOUT, quality_lines, what
from parity.report.sections import PageModel, readable
from parity.report.sprites import VIOLATION
from parity.report.wording import DIFFERENCES, logits_figures, origin_of, place, spread
from parity.result import Result


def write(result: Result, path: Path) -> None:
    """Write a result's report to `path`, whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    write_text(path, page(result))


def page(result: Result) -> str:
    """Return the report: one self-contained HTML document of at most `MOST_BYTES`."""
    if result.quality is not None:
        return _quality_page(result, result.quality)
    room = MOST_BYTES
    while True:
        text = _render(PageModel(result, room), result)
        excess = len(text.encode()) - MOST_BYTES
        if excess <= 0 or room <= 0:
            return text
        room -= excess + SPARE


def _render(model: PageModel, result: Result) -> str:
    script, first = source("tiles.js") + source("report.js"), result.first_divergence
    return (
        _templates()
        .get_template("report.html")
        .render(
            result=result,
            first=first,
            cause=result.cause,
            origin=first and origin_of(first, result),
            differences=DIFFERENCES,
            runs=model.runs,
            matrix=model.matrix(),
            lines=model.lines,
            scenarios=model.scenarios,
            passes=model.passes(),
            sprites=model.sprites,
            left_out=model.left_out,
            where=_where(result),
            data=spelled_out(model.data()),
            start=model.start,
            logits=logits_figures(result),
            overrides=_overrides(result),
            drawing=figures,
            spoken=spoken,
            scales=_scales(),
            violation=VIOLATION,
            style=source("report.css"),
            script=script,
            script_digest=digest_of(script),
        )
    )


def _quality_page(result: Result, report: QualityReport) -> str:
    return (
        _templates()
        .get_template("quality.html")
        .render(
            result=result,
            quality=report,
            what=what(report),
            about=ABOUT,
            lines=list(quality_lines(report)),
            style=source("report.css"),
        )
    )


@cache
def _templates() -> Environment:
    environment = templates("parity.report")
    environment.filters |= {
        "figure": lambda value: f"{value:.2e}",
        "short": lambda value: f"{value:.3g}",
        "place": place,
        "spread": spread,
        "token": readable,
        "bar": _bar,
        "cost": cost_line,
        "plainly": plainly,
    }
    return environment


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
