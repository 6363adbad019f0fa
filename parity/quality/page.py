"""The report of quality as one HTML file that needs nothing else: no network, no script."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from jaxllama.files.output import write_text
from parity.quality.bootstrap import CONFIDENCE, RESAMPLES
from parity.quality.report import QualityChange, WrittenText
from parity.quality.verdict import MeasuredChange
from parity.report.page_parts import source, templates

# Texts that are shown, and characters of each.
MOST_TEXTS, MOST_CHARACTERS = 100, 2000
# Of a bar, as drawn: its width, and what is left free at both ends.
_WIDTH, _MARGIN = 220, 8


@dataclass(frozen=True)
class ChangeBar:
    """Places of an interval, of the change and of zero, in pixels."""

    low: float
    high: float
    at: float
    zero: float


def write(report: QualityChange, path: Path) -> None:
    """Write a report to `path`, whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    write_text(path, page(report))


def page(report: QualityChange) -> str:
    """Return the report as one self-contained document."""
    return (
        templates("parity.quality")
        .get_template("quality.html")
        .render(
            report=report,
            rows=[(one, _bar(one)) for one in report.measures],
            shown=[_short(one) for one in report.written[:MOST_TEXTS]],
            resamples=RESAMPLES,
            confidence=CONFIDENCE,
            style=source("report.css"),
        )
    )


def _short(one: WrittenText) -> WrittenText:
    return replace(
        one,
        prompt=_cut(one.prompt),
        reference=_cut(one.reference),
        before=None if one.before is None else _cut(one.before),
        after=_cut(one.after),
    )


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}…"


def _bar(one: MeasuredChange) -> ChangeBar | None:
    if one.interval is None or one.change is None:
        return None
    ends = (one.interval.low, one.interval.high, one.change, 0.0)
    least, size = min(ends), max(ends) - min(ends)
    if not size:
        return ChangeBar(*[_WIDTH / 2] * 4)
    scale = (_WIDTH - 2 * _MARGIN) / size
    return ChangeBar(*(round(_MARGIN + (end - least) * scale, 1) for end in ends))
