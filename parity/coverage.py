"""How much a result compares, said by itself, so that what is taken out of it is missed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from parity.result import TapResult, WitnessResult


def count_runs(rows: Iterable[TapResult]) -> dict[str, int]:
    """Return how many rows each run has: `f64 causal free`."""
    return dict(Counter(f"{row.lane} {row.scenario} {row.mode}" for row in rows))


def count_witnesses(witnesses: Iterable[WitnessResult]) -> dict[str, int]:
    """Return how many rows each witness has."""
    return dict(Counter(row.witness for row in witnesses))
