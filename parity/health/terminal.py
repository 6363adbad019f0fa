"""A health report on a terminal: the verdict first, then what is wrong, then figures by layer."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from rich.console import Console
from rich.table import Table

from jaxllama.command_line.layout import make_table, print_table, say, verdict_line, with_verdict
from parity.health.figures import LayerSummary
from parity.health.groups import FIGURE_WORDS, GroupComparison
from parity.health.report import HealthReport, summary_line
from parity.health.rule import HealthFinding

STYLES = {"faulty": "bold red", "suspect": "bold yellow", "healthy": "bold green"}
_COLOURS = {"error": "red", "warning": "yellow", "information": None}
# A table of layers stays readable up to this many; of more, evenly chosen ones are shown.
MOST_LAYERS = 48
MOST_CHANGES = 12
MOST_DIFFERENCES = 20


def show(report: HealthReport, console: Console, *, quiet: bool = False) -> None:
    """Print a report; the first line is the verdict, and on a terminal that it fills the last.

    Args:
        report: what was found.
        console: where to.
        quiet: the verdict, the gravest finding and the command that explains it alone.
    """
    verdict = verdict_line(summary_line(report), STYLES[report.verdict])
    if quiet:
        worst = report.findings[0] if report.verdict != "healthy" else None
        say(console, [verdict, *([] if worst is None else [*finding_lines(worst)][:1])])
        say(console, [] if worst is None else [_more(report)])
    else:
        with_verdict(console, verdict, lambda: _show(report, console))


def _show(report: HealthReport, console: Console) -> None:
    if report.comparison is not None:
        say(console, _comparison_lines(report))
    if report.groups is not None:
        say(console, _group_lines(report.groups))
    for finding in report.findings:
        say(console, finding_lines(finding), _COLOURS[finding.severity])
    print_table(console, _table(report))
    if np.isfinite(report.loss):
        say(console, [f"text: {report.loss:.3g} nats a token, chance {report.chance:.3g}"])
    say(console, (f"note: {note}" for note in report.notes))
    if report.findings:
        say(console, [_more(report)])


def _more(report: HealthReport) -> str:
    return f"more: parity explain {report.findings[0].rule}"


def finding_lines(finding: HealthFinding) -> Iterator[str]:
    """Yield a finding in words: what and where, then what it was held to."""
    yield f"{finding.severity}: {finding.rule}: {finding.message}"
    yield (
        f"  value {finding.value:.4g}, threshold {finding.threshold:.4g} ({finding.basis}); "
        f"{finding.source}"
    )


def _comparison_lines(report: HealthReport) -> Iterator[str]:
    found = report.comparison
    assert found is not None
    if not (found.new or found.gone or found.changes):
        yield f"against {found.label}: nothing changed"
        return
    yield (
        f"against {found.label}: {len(found.new)} findings are new, {len(found.gone)} are gone, "
        f"{len(found.changes)} figures moved; text {found.loss:.3g} -> {report.loss:.3g} nats a "
        "token"
    )
    for one in found.new:
        yield f"  new: {one.rule}: {one.message}"
    for one in found.gone:
        yield f"  gone: {one.rule}: {one.message}"
    for change in found.changes[:MOST_CHANGES]:
        head = "" if change.head is None else f", head {change.head}"
        yield (
            f"  layer {change.layer}{head}: {change.figure.replace('_', ' ')} "
            f"{change.before:.3g} -> {change.after:.3g}"
        )
    if len(found.changes) > MOST_CHANGES:
        yield f"  and {len(found.changes) - MOST_CHANGES} more"


def _group_lines(groups: GroupComparison) -> Iterator[str]:
    (a, b), (x, y) = groups.counts, groups.lengths
    pairs = f"{a} pairs" if groups.paired else f"{a} texts against {b}"
    words = f", named {', '.join(groups.words)}" if groups.words else ""
    tested = f"{groups.tested} figures of heads, {groups.relabellings} relabellings{words}"
    if not groups.differences:
        yield f"{groups.first} against {groups.second}: no head differs ({pairs}; {tested})"
    else:
        yield (
            f"{groups.first} against {groups.second}: {len(groups.differences)} figures of heads "
            f"differ ({pairs}; {tested}; p corrected for all of them)"
        )
        for one in groups.differences[:MOST_DIFFERENCES]:
            yield (
                f"  layer {one.layer}, head {one.head}: {FIGURE_WORDS[one.figure]} "
                f"{one.first:.3g} against {one.second:.3g}, p {one.p:.2g}"
            )
        if len(groups.differences) > MOST_DIFFERENCES:
            yield f"  and {len(groups.differences) - MOST_DIFFERENCES} more"
    if max(x, y) > 1.1 * min(x, y):
        yield (
            f"  the texts have {x:.0f} and {y:.0f} tokens on average: of longer ones entropy and "
            "reach are others by that alone"
        )


def _table(report: HealthReport) -> Table:
    """One row a layer: of heads the range, or the one that says most."""
    table = make_table("layers; of heads from lowest to highest")
    for column in ("layer", "entropy", "sink", "lazy k", "logit", "reach", "residual", "added"):
        table.add_column(column, justify="right", no_wrap=True)
    if report.gradients is not None:
        table.add_column("grad", justify="right", no_wrap=True)
    chosen = np.unique(np.linspace(0, len(report.layers) - 1, MOST_LAYERS).astype(int))
    worst = {one.layer: one.severity for one in reversed(report.findings)}
    for layer in chosen:
        cells = list(_cells(report.layers[layer]))
        if report.gradients is not None:
            cells.append(f"{report.gradients[layer].whole:.2g}")
        table.add_row(str(layer), *cells, style=_COLOURS.get(worst.get(int(layer), "")))
    return table


def _cells(one: LayerSummary) -> Iterator[str]:
    h, s = one.heads, one.states
    for name, form in (
        ("entropy", ".2f"),
        ("sink", ".2f"),
        ("lazy_k", ".0f"),
        ("max_logit", ".3g"),
        ("reach", ".0f"),
    ):
        values = np.zeros(0) if h is None else getattr(h, name)
        values = values[np.isfinite(values)]
        if not values.size:
            yield "-"
        elif name == "max_logit":
            yield f"{values.max():{form}}"
        else:
            yield f"{values.min():{form}}-{values.max():{form}}"
    for name in ("residual", "added"):
        yield "-" if s is None else f"{getattr(s, name):.2g}"
