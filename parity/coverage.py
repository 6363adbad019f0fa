"""How much a result compares, said by itself, so that what is taken out of it is missed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from jaxllama.errors import InputError

if TYPE_CHECKING:
    from parity.result import TapResult, WitnessResult


def count_runs(rows: Iterable[TapResult]) -> dict[str, int]:
    """Return how many rows each run has: `f64 causal free`."""
    return dict(Counter(f"{row.lane} {row.scenario} {row.mode}" for row in rows))


def count_witnesses(witnesses: Iterable[WitnessResult]) -> dict[str, int]:
    """Return how many rows each witness has."""
    return dict(Counter(row.witness for row in witnesses))


def check_coverage(
    compared: int,
    runs: Mapping[str, int] | None,
    by_witness: Mapping[str, int] | None,
    rows: Sequence[TapResult],
    witnesses: Sequence[WitnessResult],
    place: str,
) -> None:
    """Refuse a document that holds other rows than it says.

    Args:
        compared: how many different taps it says it has.
        runs: how many rows of each run; None in earlier documents, which do not say.
        by_witness: how many rows of each witness, likewise.
        rows: the taps that it holds.
        witnesses: the witnesses' rows that it holds.
        place: its path.

    Raises:
        InputError: a run, a row or a witness is missing, or there is one too many.
    """
    held = [("different taps", len({row.tap for row in rows}), compared)]
    counts = ((runs, count_runs(rows)), (by_witness, count_witnesses(witnesses)))
    for said, found in counts:
        for name in {} if said is None else {**said, **found}:
            held.append((f"rows of {name}", found.get(name, 0), (said or {}).get(name, 0)))
    for what, found_, said_ in held:
        if found_ != said_:
            raise InputError(
                f"{place}: holds {found_} {what}, its coverage says {said_}; it is not what was "
                "written: write it again by parity run --json"
            )
