"""Where a difference begins: what was read, or the first failing tap, and of what kind it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from parity.result import DifferenceKind, Divergence, Reading, TapResult
from parity.taps import GRAD_TAPS, SETUP_TAPS, expected_names, flow_key, split_name

# The gravest first.
GRAVITY: tuple[DifferenceKind, ...] = ("meaning", "not judged", "computation", "rounding")


def first_divergence(rows: Sequence[TapResult]) -> Divergence | None:
    """Return where the difference begins, or None when every row passed.

    Lanes and scenarios are searched in the order they were run, which puts float64 first: it
    tells a difference of meaning. Of what the narrower dtypes alone show, another computation comes
    before worse rounding. Within one of them the subject's own run is read in data-flow order;
    setup taps (angle table, positions, mask) are flagged beside the first activation they spoil,
    and named themselves only when they spoil none.
    """
    failed = [row for row in rows if not row.passed]
    if not failed:
        return None
    in_float64 = {(row.scenario, row.mode) for row in rows if row.lane == "f64"}
    kinds = {id(row): _difference(row, in_float64) for row in failed}
    gravest = min(kinds.values(), key=GRAVITY.index)
    first = next(row for row in failed if kinds[id(row)] == gravest)
    here = [r for r in failed if (r.lane, r.scenario) == (first.lane, first.scenario)]
    return replace(_classify(sorted(here, key=_place), first.lane), difference=gravest)


def reading_divergence(reading: Reading | None) -> Divergence | None:
    """Return where the subject read another model than the checkpoint holds, None if nowhere."""
    if reading is None or not reading.differences:
        return None
    first, *others = reading.differences
    row = TapResult(
        tap=first.what,
        lane="",
        scenario="",
        mode="reading",
        step=0,
        dtype="",
        error=math.inf,
        noise=0.0,
        rho=math.inf,
        limit=0.0,
        peak_rho=math.inf,
        peak_limit=0.0,
        worst=None,
        problems=(first.said,),
        structural=True,
    )
    flagged = tuple(one.what for one in others)
    return Divergence(row, "reading", flagged, difference="reading")


def _difference(row: TapResult, in_float64: set[tuple[str, str]]) -> DifferenceKind:
    """Return what a failed row is a difference of.

    Args:
        row: that failed.
        in_float64: scenarios and modes that were run in float64, too.
    """
    if row.lane == "f64":
        return "meaning"
    if not in_float64 or (row.mode != "probe" and (row.scenario, row.mode) not in in_float64):
        return "not judged"
    return "computation" if row.beyond_rounding else "rounding"


def _place(row: TapResult) -> tuple[bool, int, tuple[int, int, float]]:
    """Order what failed: forwards before backwards, an earlier call before a later one."""
    return split_name(row.tap)[0] in GRAD_TAPS, row.step, flow_key(row.tap)


# Modes whose scenarios are theirs alone.
_ALONE: dict[str, Literal["generation", "step", "tokens"]] = {
    "generate": "generation",
    "step": "step",
    "tokens": "tokens",
}


def _classify(failed: list[TapResult], lane: str) -> Divergence:
    if kind := _ALONE.get(failed[0].mode):
        return Divergence(failed[0], kind, ())
    setup = [row for row in failed if row.tap in SETUP_TAPS]
    flagged = tuple(dict.fromkeys(row.tap for row in setup))
    forced = ("isolated", "probe")
    isolated = [row for row in failed if row.mode in forced and row.tap not in SETUP_TAPS]
    running = [row for row in failed if row.mode not in forced and row.tap not in SETUP_TAPS]
    if not running and not isolated:
        return Divergence(setup[0], "setup", flagged)
    if not running:
        return Divergence(isolated[0], "operator", flagged)
    first = running[0]
    if not isolated and all(row.mode == "production" for row in running):
        return Divergence(first, "whole", flagged)
    if split_name(first.tap)[0] in GRAD_TAPS:  # no forward tap failed: those sort first
        return Divergence(first, "loss" if first.tap == "loss" else "backward", flagged)
    wrong_operators = {row.tap for row in isolated}
    if first.tap in wrong_operators:
        return Divergence(first, "operator", flagged)
    if flagged:
        return Divergence(first, "upstream", flagged)
    if isolated and lane != "f64":
        # Rounding accumulates until it shows somewhere; the operator that rounds badly is named.
        return Divergence(isolated[0], "operator", flagged)
    return Divergence(first, "drift" if lane != "f64" else "upstream", flagged)


def unseen_before(tap: str, shown: Sequence[str]) -> tuple[str, ...]:
    """Return the taps between `tap` and the last one shown before it: what it may be due to."""
    layers = [layer for _, layer in map(split_name, [tap, *shown]) if layer is not None]
    names = [name for name in expected_names(max(layers, default=-1) + 1) if name not in SETUP_TAPS]
    before = names[: names.index(tap)] if tap in names else []
    seen = [place for place, name in enumerate(before) if name in set(shown)]
    return tuple(before[seen[-1] + 1 if seen else 0 :])
