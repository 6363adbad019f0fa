"""The selftest's matrix on a terminal."""

from __future__ import annotations

import textwrap

from rich.console import Console
from rich.table import Table

from parity.selftest.calibration import table
from parity.selftest.machines.table import tables
from parity.selftest.results import SelftestResult, by_family

# Of a family's kinds the first are enough on a terminal of 80 columns; JSON has them all.
KINDS_WIDTH = 26


def show(matrix: SelftestResult, console: Console) -> None:
    """Print the sums first, then a line for each family, then every miss by name."""
    sums = matrix.summary()
    style = "bold green" if matrix.passed else "bold red"
    injected = (
        f"{sums['detected']} of {sums['injections']} injections of {sums['kinds']} kinds detected, "
        f"{sums['located']} located, {sums['named']} named, {sums['confirmed']} confirmed; "
    )
    console.print(
        (injected if matrix.injections else "")
        + f"{sums['false_alarms']} false alarms in {sums['clean_runs']} clean runs",
        style=style,
        highlight=False,
        soft_wrap=True,
    )
    if matrix.injections:
        console.print(_table(matrix))
    if matrix.ranges:
        console.print(table(matrix.ranges))
    if not matrix.injections:  # a calibration, which is about figures
        for made in tables(matrix.imitated):
            console.print(made)
    for row in matrix.misses:
        what = "not located" if row.detected else "NOT DETECTED"
        _line(console, f"{what}: {row.id}")
        _line(
            console, f"    expected {row.expected}, found {row.found or row.error or row.verdict}"
        )
    for row in matrix.unnamed:
        said = f"cause {row.cause_found}" if row.cause_found else "no cause"
        wanted = "not confirmed" if row.named else f"expected {row.cause_expected}"
        _line(console, f"{said}, {wanted}: {row.id} {row.error}")
    for run in matrix.alarms:
        where = f"{run.model} {run.scenario} {run.lane} {run.mode}"
        _line(
            console, f"FALSE ALARM: {run.kind} [{where}]: {run.found or run.error or run.verdict}"
        )
    for run in matrix.missed_controls:
        where = f"{run.model} {run.scenario} {run.lane} {run.mode}"
        _line(console, f"NO ALARM: {run.kind} [{where}]: {run.error or run.verdict}")
    _line(console, f"{matrix.seconds:.0f} s")


def _line(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)


def _table(matrix: SelftestResult) -> Table:
    table = Table(title="faults injected into the JAX side", title_justify="left")
    table.add_column("family")
    table.add_column("kinds", no_wrap=True)
    for column in ("faults", "found", "located", "named", "confirmed"):
        table.add_column(column, justify="right")
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
