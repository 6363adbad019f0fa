"""A population of mutants on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxllama.command_line.layout import make_table, print_table, say, with_verdict
from parity.selftest.mutants.examine import MutantResult, summary_of
from parity.selftest.mutants.population import Population

COLUMNS = ("not_equivalent", "detected", "placed", "full", "part", "wrong", "none")


def show(population: Population, console: Console, *, quiet: bool = False) -> None:
    """Print the sums, then tables by module and by rule, then all that went wrong, by name.

    Args:
        population: what was found.
        console: where to; on a terminal that it fills the sums are the last lines, too.
        quiet: the sums and what went wrong alone.
    """
    style = "bold green" if population.passed else "bold red"
    verdict = Text("\n".join(_sums(population)), style=style)
    if quiet:
        say(console, [verdict, *_wrong(population)])
    else:
        with_verdict(console, verdict, lambda: _show(population, console))


def _sums(population: Population) -> Iterator[str]:
    sums = population.summary
    yield (
        f"{sums['mutants']} mutants of {population.reached} (seed {population.seed}): "
        f"{sums['not_equivalent']} do something else, {sums['equivalent']} the same, "
        f"{sums['crash']} crash, {sums['refused']} are refused, {sums['timeout']} take too long"
    )
    live = sums["not_equivalent"]
    explained = sum(sums[kind] for kind in ("full", "part", "wrong", "none"))
    yield (
        f"of those {live}: detected {_share(sums['detected'], live)}, placed "
        f"{_share(sums['placed'], sums['detected'])} of them, of {explained} in the model "
        f"explained in full {_share(sums['full'], explained)}, in part {sums['part']}, wrongly "
        f"{sums['wrong']}; alarms on equivalent ones: {sums['alarms']}"
    )


def _show(population: Population, console: Console) -> None:
    print_table(console, _table("by group", population.results, lambda r: r.mutant.group))
    print_table(console, _table("by module", population.results, lambda r: r.mutant.module))
    print_table(console, _table("by rule", population.results, lambda r: r.mutant.rule))
    print_table(console, _catchers(population.results))
    say(console, _wrong(population))
    say(console, [f"{population.seconds:.0f} s"])


def _wrong(population: Population) -> Iterator[str]:
    for row in population.results:
        for what in _failures(row):
            yield f"{what}: {row.mutant.name}"


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
    table = make_table("by what caught them")
    for column in ("group", "caught by"):
        table.add_column(column, no_wrap=True)
    table.add_column("mutants", justify="right")
    for group in sorted({row.mutant.group for row in rows} - {"model"}):
        caught = summary_of([row for row in rows if row.mutant.group == group])["caught_by"]
        for what, number in sorted(caught.items(), key=lambda one: -one[1]):
            table.add_row(group, what, str(number))
    return table


def _table(title: str, rows: Sequence[MutantResult], key: Callable[[MutantResult], str]) -> Table:
    table = make_table(title)
    table.add_column(title.removeprefix("by "), no_wrap=True)
    for column in ("mutants", *COLUMNS):
        table.add_column(column.replace("_", " "), justify="right")
    for name in sorted({key(row) for row in rows}):
        of_name = [row for row in rows if key(row) == name]
        sums = summary_of(of_name)
        counts = (str(sums[column]) for column in COLUMNS)
        table.add_row(name.removeprefix("jaxllama."), str(len(of_name)), *counts)
    return table
