"""How near imitated machines come to the limits: a table for each model and its inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from rich.table import Table

from parity.selftest.figures import Figure
from parity.selftest.machines.catalogue import PLACES
from parity.tolerance import LIMITS

MODES = ("isolated", "free")


class Run(Protocol):
    """What is shown of a run; see `parity.selftest.matrix.CleanRun`."""

    @property
    def kind(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def scenario(self) -> str: ...
    @property
    def lane(self) -> str: ...
    @property
    def figures(self) -> tuple[Figure, ...]: ...


def tables(runs: Iterable[Run]) -> Iterator[Table]:
    """Yield a table of machines for each model and inputs, of the largest rho and single element.

    Beside each dtype and mode stand the limits of both.
    """
    places: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        places.setdefault((run.model, run.scenario), []).append(run)
    for (model, scenario), found in places.items():
        yield _table(model, scenario, found)


def _table(model: str, scenario: str, runs: Sequence[Run]) -> Table:
    form = model.partition("@")[0]
    why = next((p.why for p in PLACES if (p.model, p.scenario) == (form, scenario)), "")
    made = Table(title=f"machines, {model} {scenario}: {why}", title_justify="left")
    made.add_column("machine", no_wrap=True)
    lanes = [lane for lane in LIMITS if any(run.lane == lane for run in runs)]
    for lane in lanes:
        for mode in MODES:
            limits = LIMITS[lane].rho(mode), LIMITS[lane].peak(mode)
            heading = f"{lane}\n{mode}\n{limits[0]:g} {limits[1]:g}"
            made.add_column(heading, justify="right", no_wrap=True)
    for kind in dict.fromkeys(run.kind for run in runs):
        by_lane = {run.lane: run.figures for run in runs if run.kind == kind}
        cells = [_cell(by_lane.get(lane, ()), mode) for lane in lanes for mode in MODES]
        made.add_row(kind, *cells)
    return made


def _cell(figures: Sequence[Figure], mode: str) -> str:
    """Return rho and the largest single element of a mode, red where one is over its limit."""
    shown = [f for quantity in ("rho", "peak") for f in figures if _is(f, mode, quantity)]
    text = " ".join(f"{f.seen:.2g}" for f in shown)
    return f"[red]{text}[/]" if any(f.seen > f.limit for f in shown) else text


def _is(figure: Figure, mode: str, quantity: str) -> bool:
    return (figure.mode, figure.quantity) == (mode, quantity)
