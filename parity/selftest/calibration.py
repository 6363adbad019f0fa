"""How near clean runs come to the limits: what the limits were calibrated on, and are again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from jaxllama.command_line.layout import make_table
from parity.result import TapResult


@dataclass(frozen=True)
class Figure:
    """The largest of one quantity in one run, as a share of what is allowed.

    Attributes:
        mode: `free`, `isolated`, `decode`, `grad`, `production`, or `probe` of one-hot factors;
            `chained` where an isolated run went through several operators.
        quantity: `rho`, `peak` (both in units of noise) or `total variation` of attention maps:
            what scores do not account for, as a share of what rounding inside a softmax may do.
        seen: its value.
        limit: the limit in force.
        tap: where.
        noise_from: what the noise there was taken from, see `parity.noise.widen.Floor`.
    """

    mode: str
    quantity: str
    seen: float
    limit: float
    tap: str
    noise_from: str = "measured"


@dataclass(frozen=True)
class Range:
    """The largest of one quantity over many runs of a lane and mode."""

    lane: str
    mode: str
    quantity: str
    runs: int
    seen: float
    limit: float
    where: str

    @property
    def headroom(self) -> float:
        """How many times the largest seen would fit under the limit."""
        return self.limit / self.seen if self.seen else float("inf")

    def to_dict(self) -> dict[str, Any]:
        """Return the row of the JSON document."""
        return {**asdict(self), "headroom": self.headroom if self.seen else None}


def figures(rows: Iterable[TapResult]) -> tuple[Figure, ...]:
    """Return the largest of each quantity in each mode."""
    largest: dict[tuple[str, str], Figure] = {}
    for row in rows:
        measured = {"rho": (row.rho, row.limit), "peak": (row.peak_rho, row.peak_limit)}
        if "total_variation_rounding" in row.facts:
            measured["total variation"] = row.facts["total_variation_rounding"], 1.0
        mode = "chained" if row.chained else row.mode
        for quantity, (seen, limit) in measured.items():
            now = largest.get((mode, quantity))
            if now is None or seen > now.seen:
                found = Figure(mode, quantity, seen, limit, row.tap, row.noise_from)
                largest[mode, quantity] = found
    return tuple(largest.values())


def ranges(runs: Iterable[tuple[str, str, Sequence[Figure]]]) -> list[Range]:
    """Return the largest figures over runs, each given as its lane, what it is, and its figures."""
    found: dict[tuple[str, str, str], Range] = {}
    for lane, what, seen in runs:
        for f in seen:
            key = lane, f.mode, f.quantity
            now = found.get(key) or Range(*key, 0, 0.0, f.limit, "")
            largest, where = now.seen, now.where
            if f.seen >= largest:
                largest, where = f.seen, f"{what}: {f.tap}"
            found[key] = Range(*key, now.runs + 1, largest, f.limit, where)
    lanes = ("f64", "f32", "bf16")
    return sorted(found.values(), key=lambda r: (r.quantity, lanes.index(r.lane), r.mode))


def table(found: Sequence[Range]) -> Table:
    """Return seen, limit and headroom of every quantity, lane and mode."""
    made = make_table("the largest of clean runs beside its limit")
    for column in ("quantity", "lane", "mode"):
        made.add_column(column, no_wrap=True)
    for column in ("runs", "seen", "limit", "headroom"):
        made.add_column(column, justify="right", no_wrap=True)
    for r in found:
        made.add_row(
            r.quantity,
            r.lane,
            r.mode,
            str(r.runs),
            f"{r.seen:.3g}",
            f"{r.limit:g}",
            f"{r.headroom:.3g}",
            style="red" if r.seen > r.limit else None,
        )
    return made
