"""A report of quality on a terminal: the verdict first, then each measure before and after."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from jaxllama.command_line.layout import make_table, print_table, say, verdict_line, with_verdict
from parity.quality.bootstrap import CONFIDENCE, LEAST_EXAMPLES, RESAMPLES, Interval
from parity.quality.report import QualityChange, summary_line
from parity.quality.verdict import MeasuredChange

STYLES = {"worse": "bold red", "mixed": "bold yellow", "better": "bold green"}
_COLOURS = {"worse": "red", "better": "green"}


def show(report: QualityChange, console: Console, *, quiet: bool = False) -> None:
    """Print a report; the first line is the verdict, and on a terminal that it fills the last.

    Args:
        report: what was measured.
        console: where to.
        quiet: the verdict and the conditions of failing that are met alone.
    """
    verdict = verdict_line(summary_line(report), STYLES.get(report.verdict, "bold"))
    if quiet:
        say(console, [verdict, *_failed(report)])
    else:
        with_verdict(console, verdict, lambda: _show(report, console))


def _show(report: QualityChange, console: Console) -> None:
    print_table(console, _table(report))
    say(console, _lines(report))


def _table(report: QualityChange) -> Table:
    table = make_table()
    pair = bool(report.change)
    table.add_column("", no_wrap=True)
    for column in ("before", "after", "change", "interval") if pair else ("", "interval"):
        table.add_column(column, justify="right", no_wrap=True)
    if pair:
        table.add_column("", no_wrap=True)
    for one in report.measures:
        cells = list(_pair_cells(one)) if pair else [_number(one.after), _ends(one.after_interval)]
        table.add_row(one.title, *cells, style=_COLOURS.get(one.verdict))
    return table


def _pair_cells(one: MeasuredChange) -> Iterator[str]:
    assert one.before is not None and one.change is not None
    yield _number(one.before)
    yield _number(one.after)
    yield f"{one.change:+.3g}"
    yield _ends(one.interval, signed=True)
    yield one.verdict


def _number(value: float) -> str:
    return f"{value:.4g}"


def _ends(found: Interval | None, *, signed: bool = False) -> str:
    if found is None:
        return "-"
    form = "+.3g" if signed else ".4g"
    return f"{found.low:{form}} to {found.high:{form}}"


def _lines(report: QualityChange) -> Iterator[str]:
    if report.figures is not None:
        yield (
            f"distributions: KL {report.figures.kl_mean:.3g} nats a token, at most "
            f"{report.figures.kl_max:.3g}; top-1 agreement {report.figures.top1_agreement:.1%}"
        )
    yield (
        f"intervals: {RESAMPLES} resamples of the examples, seed {report.seed}; all hold together "
        f"{CONFIDENCE:.0%} of the time, each {report.each_confidence:.4g}"
    )
    few = {one.examples for one in report.measures if one.examples < LEAST_EXAMPLES}
    for count in sorted(few):
        yield (
            f"{count} example{'s' * (count != 1)}: no interval, which takes at least "
            f"{LEAST_EXAMPLES}"
        )
    for note in report.notes:
        yield f"note: {note}"
    yield from _failed(report)


def _failed(report: QualityChange) -> Iterator[str]:
    for condition in report.failed:
        yield f"failed: {condition}"
