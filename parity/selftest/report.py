"""The selftest's matrix on a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxllama.command_line.layout import make_table, print_table, say, with_verdict
from parity.selftest.calibration import table
from parity.selftest.machines.table import tables
from parity.selftest.results import SelftestResult, by_family

# Of a family's kinds the first are enough on a terminal of 80 columns; JSON has them all.
KINDS_WIDTH = 26


def show(matrix: SelftestResult, console: Console, *, quiet: bool = False) -> None:
    """Print the sums first, then a line for each family, then every miss by name.

    Args:
        matrix: what was found.
        console: where to; on a terminal that it fills the sums are the last line, too.
        quiet: the sums and the misses alone.
    """
    sums = matrix.summary()
    injected = (
        f"{sums['detected']} of {sums['injections']} injections of {sums['kinds']} kinds detected, "
        f"{sums['located']} located, {sums['named']} named, {sums['confirmed']} confirmed; "
    )
    line = (injected if matrix.injections else "") + (
        f"{sums['false_alarms']} false alarms in {sums['clean_runs']} clean runs"
    )
    if unfair := sum(not row.fair for row in matrix.clean):
        line += f"; {unfair - sums['unheard']} of {unfair} unfair controls alarm"
    verdict = Text(line, style="bold green" if matrix.passed else "bold red")
    if quiet:
        say(console, [verdict, *_misses(matrix)])
    else:
        with_verdict(console, verdict, lambda: _show(matrix, console))


def _show(matrix: SelftestResult, console: Console) -> None:
    if matrix.injections:
        print_table(console, _table(matrix))
    if matrix.ranges:
        print_table(console, table(matrix.ranges))
    if not matrix.injections:  # a calibration, which is about figures
        for made in tables(matrix.imitated):
            print_table(console, made)
    say(console, _misses(matrix))
    say(console, [f"{matrix.seconds:.0f} s"])
    if matrix.environment:
        say(console, [f"machine: {matrix.environment['machine']['line']}"])


def _misses(matrix: SelftestResult) -> Iterator[str]:
    for row in matrix.misses:
        what = "not located" if row.detected else "NOT DETECTED"
        yield f"{what}: {row.id}"
        yield f"    expected {row.expected}, found {row.found or row.error or row.verdict}"
    for row in matrix.unnamed:
        said = f"cause {row.cause_found}" if row.cause_found else "no cause"
        wanted = "not confirmed" if row.named else f"expected {row.cause_expected}"
        yield f"{said}, {wanted}: {row.id} {row.error}"
    for run in matrix.alarms:
        where = f"{run.model} {run.scenario} {run.lane} {run.mode}"
        yield f"FALSE ALARM: {run.kind} [{where}]: {run.found or run.error or run.verdict}"
    for run in matrix.missed_controls:
        where = f"{run.model} {run.scenario} {run.lane} {run.mode}"
        yield f"NO ALARM: {run.kind} [{where}]: {run.error or run.verdict}"


def _table(matrix: SelftestResult) -> Table:
    table = make_table("faults injected into the JAX side")
    table.add_column("family", no_wrap=True)
    table.add_column("kinds", no_wrap=True)
    for column in ("faults", "found", "located", "named", "confirmed"):
        table.add_column(column, justify="right", no_wrap=True)
    for family, rows in by_family(matrix.injections).items():
        counts = (
            len(rows),
            sum(row.detected for row in rows),
            sum(row.located for row in rows),
            sum(row.named for row in rows),
            sum(row.named and row.confirmed for row in rows),
        )
        kinds = textwrap.shorten("; ".join(dict.fromkeys(r.kind for r in rows)), KINDS_WIDTH)
        failed = min(counts) < counts[0]
        table.add_row(family, kinds, *map(str, counts), style="red" if failed else None)
    return table
