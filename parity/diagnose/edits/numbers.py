"""Numbers solved for, so that what is made of them comes closest to what was seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import torch
from torch import Tensor

STEPS = 10
HALVINGS = 4
# A difference quotient's step, relative.
NUDGE = 1e-6
# A rounder number is taken if it leaves no more than this many times as much.
ROUNDER = 2.0

# The norm of what cannot be tried, or is not finite.
NONE = 1e300

Residual = Callable[[Sequence[float]], Tensor | None]


def solve_numbers(
    residual: Residual, starts: Sequence[Sequence[float]], enough: float
) -> list[float] | None:
    """Return the numbers that make a residual smallest; None if none can be tried.

    Gauss-Newton from the best of some starts, then the roundest numbers that do as well.

    Args:
        residual: what numbers leave, as a vector; None where they cannot be tried.
        starts: each has where every number's search may begin.
        enough: a norm at which the search ends.
    """
    ranked = sorted(product(*starts), key=lambda numbers: _norm(residual(numbers)))[:2]
    best, at = NONE, None
    for numbers in ranked:
        found, there = _descend(residual, list(numbers), enough)
        if found < best:
            best, at = found, there
        if best <= enough:
            break
    return None if at is None else _roundest(residual, at, best, enough)


def _norm(vector: Tensor | None) -> float:
    found = NONE if vector is None else float(vector.norm())
    return found if found < NONE else NONE


def _descend(residual: Residual, at: list[float], enough: float) -> tuple[float, list[float]]:
    """Return the smallest norm near some numbers, and where it is."""
    here = residual(at)
    best = _norm(here)
    for _ in range(STEPS):
        if here is None or best >= NONE or best <= 1e-3 * enough:
            break
        columns = []
        for i, number in enumerate(at):
            step = NUDGE * (abs(number) or 1.0)
            there = residual([*at[:i], number + step, *at[i + 1 :]])
            if there is None:
                return best, at
            columns.append((there - here) / step)
        slope = torch.stack(columns, dim=1)
        if not slope.isfinite().all():
            return best, at
        move = torch.linalg.lstsq(slope, -here[:, None]).solution[:, 0].tolist()
        before = best
        for halving in range(HALVINGS):
            tried = [n + m / 4**halving for n, m in zip(at, move, strict=True)]
            there = residual(tried)
            if _norm(there) < best:
                best, at, here = _norm(there), tried, there
                break
        if best > 0.9 * before:
            break
    return best, at


def _roundest(residual: Residual, at: list[float], best: float, enough: float) -> list[float]:
    for i in range(len(at)):
        for digits in range(1, 16):
            rounder = [*at[:i], float(f"{at[i]:.{digits}g}"), *at[i + 1 :]]
            if _norm(residual(rounder)) <= max(ROUNDER * best, enough):
                at = rounder
                break
    return at
