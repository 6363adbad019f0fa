"""How much a result compares, said by itself, so that what is taken out of it is missed; and in
short what it found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from parity.taps import expected_names, split_name

if TYPE_CHECKING:
    from parity.result import Result, TapResult, WitnessResult


def count_runs(rows: Iterable[TapResult]) -> dict[str, int]:
    """Return how many rows each run has: `f64 causal free`."""
    return dict(Counter(f"{row.lane} {row.scenario} {row.mode}" for row in rows))


def count_witnesses(witnesses: Iterable[WitnessResult]) -> dict[str, int]:
    """Return how many rows each witness has."""
    return dict(Counter(row.witness for row in witnesses))


def missing_taps(rows: Iterable[TapResult], layers: int, absent: Collection[str]) -> set[str]:
    """Return the taps that whole passes of a dtype show, and no row of it is of.

    Args:
        rows: of any dtypes and modes.
        layers: L.
        absent: kinds that the subject has declared not to show.
    """
    passes: dict[str, set[str]] = {}
    cached = set()
    for row in rows:
        if row.mode in ("free", "isolated", "decode"):
            passes.setdefault(row.lane, set()).add(row.tap)
            cached |= {row.lane} if row.mode == "decode" else set()
    return {
        name
        for lane, held in passes.items()
        for name in expected_names(layers, cache=lane in cached)
        if name not in held and split_name(name)[0] not in absent
    }


# Of a result where it is printed: how long a line is at most, and the command.
_LINE, _COMMAND = 200, 400


def in_short(result: Result) -> str:
    """Return verdict, what was not run, place, cause, what is open and the command, a line each.

    All figures are in `rows`, `to_dict()` and the reports.
    """
    first, cause = result.first_divergence, result.cause
    kind = f" ({result.difference})" if result.difference else ""
    judged = f"{result.compared} of {result.expected} taps of " if result.quality is None else ""
    runs = ", ".join(result.lanes) or "no dtype"
    lines = [f"{result.verdict}{kind}: {judged}{result.subject} in {runs}"]
    if result.not_run:
        lines.append(f"not run: {'; '.join(result.not_run)}")
    if first is not None:
        row = first.row
        lines.append(
            f"first divergence: {row.tap} ({row.lane}, {row.scenario}, {row.mode}), {first.kind}: "
            f"error {row.error:.3g}, {row.rho:.3g} times the noise"
        )
    if cause is not None:
        sure = "cause" if cause.confirmed else "cause, not confirmed"
        lines.append(f"{sure}: {cause.summary or cause.title}")
    if result.unmatched:
        lines.append(f"unmatched: {', '.join(result.unmatched)}")
    if result.disagreeing:
        lines.append(f"witnesses disagree: {', '.join(w.witness for w in result.disagreeing)}")
    if result.notes:
        lines.append(f"notes: {len(result.notes)}, the first: {result.notes[0]}")
    return "\n".join(
        [*(_cut(line, _LINE) for line in lines), _cut(f"again: {result.command}", _COMMAND)]
    )


def _cut(line: str, most: int) -> str:
    flat = " ".join(line.split())
    return flat if len(flat) <= most else f"{flat[: most - 3]}..."
