"""Rows and witnesses of what has to be equal, not near: token ids, texts, lengths."""

from __future__ import annotations

from collections.abc import Sequence

from parity.comparison.tolerance import LIMITS, UNIT_ROUNDOFF
from parity.result import TapResult, WitnessResult

# Of one row's problems as many are said.
MOST_PROBLEMS = 5


def exact_row(tap: str, lane: str, scenario: str, mode: str, problems: Sequence[str]) -> TapResult:
    """Return a row that fails if there are problems, whatever the limits."""
    limits, more = LIMITS[lane], len(problems) - MOST_PROBLEMS
    return TapResult(
        tap=tap,
        lane=lane,
        scenario=scenario,
        mode=mode,
        step=0,
        dtype="",
        error=0.0,
        noise=limits.floor * UNIT_ROUNDOFF[lane],
        rho=0.0,
        limit=limits.rho(mode),
        peak_rho=0.0,
        peak_limit=limits.peak(mode),
        worst=None,
        problems=(*problems[:MOST_PROBLEMS], *([f"and {more} more"] if more > 0 else [])),
        structural=bool(problems),
        noise_from="exact",
    )


def reference_witness(
    name: str, lane: str, mode: str, rows: Sequence[TapResult], gap: float = 0.0
) -> WitnessResult:
    """Return the witness that rows were held to: their reference, which is compared with nothing.

    Args:
        name: of the implementation.
        lane: of the rows.
        mode: likewise.
        rows: what was held to it.
        gap: the largest relative difference from the subject.
    """
    return WitnessResult(
        witness=name,
        lane=lane,
        scenario=rows[0].scenario,
        mode=mode,
        is_gold=True,
        compared=len({row.tap for row in rows}),
        absent=(),
        unmatched=(),
        worst_tap=rows[0].tap,
        rho=0.0,
        limit=LIMITS[lane].witness_limit(mode),
        error=0.0,
        subject_gap=gap,
    )
