"""How near imitated machines come to the limits: a table for each model, its inputs and dtype."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from rich.table import Table
from rich.text import Text

from jaxllama.command_line.layout import make_table
from parity.comparison.tolerance import LIMITS
from parity.selftest.calibration import Figure
from parity.selftest.machines.catalogue import WORKLOADS

# What a mode is called, and the mode whose limits it has.
MODES = {"isolated": "isolated", "chained": "free", "free": "free"}
QUANTITIES = ("rho", "peak")
# What is said of an unfair one.
MUST_ALARM = "must alarm"


class RunFigures(Protocol):
    """What is shown of a run; see `parity.selftest.results.CleanResult`."""

    @property
    def kind(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def scenario(self) -> str: ...
    @property
    def lane(self) -> str: ...
    @property
    def fair(self) -> bool: ...
    @property
    def figures(self) -> tuple[Figure, ...]: ...


def tables(runs: Iterable[RunFigures]) -> Iterator[Table]:
    """Yield tables of machines: the largest rho and single element beside the limits of both."""
    places: dict[tuple[str, str, str], list[RunFigures]] = {}
    for run in runs:
        places.setdefault((run.model, run.scenario, run.lane), []).append(run)
    for (model, scenario, lane), found in places.items():
        form = model.partition("@")[0]
        why = [p.why for p in WORKLOADS if (p.model, p.scenario) == (form, scenario)]
        title = f"{model} {scenario} {lane}: {''.join(why[:1])}"
        yield _table(title, lane, found)


def _table(title: str, lane: str, runs: Sequence[RunFigures]) -> Table:
    seen = {figure.mode for run in runs for figure in run.figures}
    modes = [mode for mode in MODES if mode in seen]
    made = make_table(title)
    made.add_column("machine", no_wrap=True)
    for mode in modes:
        limits = LIMITS[lane].rho(MODES[mode]), LIMITS[lane].peak(MODES[mode])
        heading = f"{mode}\nof {limits[0]:g} {limits[1]:g}"
        made.add_column(heading, justify="right", no_wrap=True)
    for run in runs:
        cells = [_cell(run.figures, mode, over="red" if run.fair else "") for mode in modes]
        made.add_row(run.kind if run.fair else f"{run.kind}: {MUST_ALARM}", *cells)
    return made


def _cell(figures: Sequence[Figure], mode: str, *, over: str) -> Text:
    """Return rho and the largest single element of a mode, styled where over the limit."""
    shown = [f for q in QUANTITIES for f in figures if (f.mode, f.quantity) == (mode, q)]
    text = " ".join(f"{f.seen:.{1 if f.seen >= 1 else 2}f}" for f in shown)
    return Text(text, style=over if any(f.seen > f.limit for f in shown) else "")
