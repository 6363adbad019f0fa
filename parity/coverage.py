"""How much a result compares, said by itself, so that what is taken out of it is missed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from parity.taps import expected_names, split_name

if TYPE_CHECKING:
    from parity.result import TapResult, WitnessResult


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
