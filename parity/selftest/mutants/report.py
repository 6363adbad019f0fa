"""A population of mutants on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

from parity.selftest.mutants.examine import MutantResult, summary_of
from parity.selftest.mutants.population import Population

COLUMNS = ("not_equivalent", "detected", "placed", "full", "part", "wrong", "none")


def show(population: Population, console: Console) -> None:
    """Print the sums, then tables by module and by rule, then all that went wrong, by name."""
    sums = population.summary
    style = "bold green" if population.passed else "bold red"
    console.print(
        f"{sums['mutants']} mutants of {population.reached} (seed {population.seed}): "
        f"{sums['not_equivalent']} do something else, {sums['equivalent']} the same, "
        f"{sums['crash']} crash, {sums['refused']} are refused, {sums['timeout']} take too long",
        style=style,
        highlight=False,
        soft_wrap=True,
    )
    live = sums["not_equivalent"]
    explained = sum(sums[kind] for kind in ("full", "part", "wrong", "none"))
    console.print(
        f"of those {live}: detected {_share(sums['detected'], live)}, placed "
        f"{_share(sums['placed'], sums['detected'])} of them, of {explained} in the model "
        f"explained in full {_share(sums['full'], explained)}, in part {sums['part']}, wrongly "
        f"{sums['wrong']}; alarms on equivalent ones: {sums['alarms']}",
        style=style,
        highlight=False,
        soft_wrap=True,
    )
    console.print(_table("by group", population.results, lambda r: r.mutant.group))
    console.print(_table("by module", population.results, lambda r: r.mutant.module))
    console.print(_table("by rule", population.results, lambda r: r.mutant.rule))
    console.print(_catchers(population.results))
    for row in population.results:
        for what in _failures(row):
            console.print(
                f"{what}: {row.mutant.name}", soft_wrap=True, highlight=False, markup=False
            )
    console.print(f"{population.seconds:.0f} s", highlight=False)


def _failures(row: MutantResult) -> list[str]:
    found = []
    if row.equivalent and row.detected:
        found.append("ALARM")
    if row.outcome == "judged" and not row.equivalent and not row.detected:
        found.append("NOT DETECTED")
    if row.detected and not row.equivalent and not row.placed:
        found.append("not placed")
    if row.outcome == "broken":
        found.append(f"THE CHECKER RAISED {row.said} at {row.left}")
    if row.explained == "wrong":
        found.append("WRONGLY EXPLAINED")
    return found


def _share(part: int, whole: int) -> str:
    return f"{part} ({100 * part / whole:.0f} %)" if whole else "none"


def _catchers(rows: Sequence[MutantResult]) -> Table:
    """Return what caught how many mutants of the groups that are tabled, not explained."""
    table = Table(title="by what caught them", title_justify="left")
    for column in ("group", "caught by"):
        table.add_column(column, no_wrap=True)
    table.add_column("mutants", justify="right")
    for group in sorted({row.mutant.group for row in rows} - {"model"}):
        caught = summary_of([row for row in rows if row.mutant.group == group])["caught_by"]
        for what, number in sorted(caught.items(), key=lambda one: -one[1]):
            table.add_row(group, what, str(number))
    return table


def _table(title: str, rows: Sequence[MutantResult], key: Callable[[MutantResult], str]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(title.removeprefix("by "), no_wrap=True)
    for column in ("mutants", *COLUMNS):
        table.add_column(column.replace("_", " "), justify="right")
    for name in sorted({key(row) for row in rows}):
        of_name = [row for row in rows if key(row) == name]
        sums = summary_of(of_name)
        counts = (str(sums[column]) for column in COLUMNS)
        table.add_row(name.removeprefix("jaxllama."), str(len(of_name)), *counts)
    return table
