"""Raising a measured floor to what rounding may honestly cost, where an alarm is near.

NumPy alone. Three steps, each only for the tokens that the last one leaves near an alarm:

1. what honest variants differ by on this machine (`parity.comparison.tolerance.noise_floor`);
2. the envelope of what orders of summation cost (`parity.noise.envelope`): first the walk alone,
   which is cheap, then the partial sums themselves;
3. the operator itself, run in float32 in each order (`parity.noise.orders`): an alarm stands only
   if the subject is beyond its limit in all of them.

A machine therefore decides by which step a subject passes, not whether it does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from parity.comparison import logits
from parity.comparison.difference import TapDifference
from parity.comparison.reference import ReferenceTap
from parity.noise.envelope import error_bound, sum_variance, walk_variance
from parity.noise.operators import SummedTap
from parity.noise.orders import TRIALS

# The envelope is looked at from this share of a limit on: what passes by less says nothing about
# another machine, and the figure that reports print is then the same on all of them.
NEAR = 0.5
# How much of an envelope counts as noise: limits of 4 times the noise are then twice the envelope.
# Sums whose terms are not all alike stay below twice the envelope in every order that is tried
# (tests/parity/noise/test_envelope.py). What passes that, or nearly, is tried.
ENVELOPE_SHARE = 0.5
TRIED = 0.75
# Factors, or sums, that are in memory at once.
_ELEMENTS = 1 << 21
# Rows tried in every order at a time: those that are farthest beyond their limit.
_TRIED_ROWS = 8

# In the place of an order's name.
BEYOND = "none"

Variance = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Floor:
    """The noise of one tap, row by row (of `ReferenceTap.live`).

    Attributes:
        norm, peak: what an honest error's norm and its largest element may be, relative.
        source: what was asked: `measured`, `envelope`, or `order: ...`, the one of those tried that
            errs most, or `order: none` where none can err so much.
    """

    norm: np.ndarray
    peak: np.ndarray
    source: str = "measured"


@dataclass
class _Near:
    """The rows that are near an alarm."""

    found: TapDifference
    reference: ReferenceTap
    limits: tuple[float, float]
    norm: np.ndarray
    peak: np.ndarray

    def rows(self, share: float) -> np.ndarray:
        """Return the rows beyond a share of a limit, the worst first."""
        excess = self.excess().reshape(-1)
        over = np.flatnonzero(excess > share)
        return over[np.argsort(-excess[over], kind="stable")]

    def excess(self) -> np.ndarray:
        """Return each row's figure as a share of its limit, the larger of both."""
        figures = [
            np.where(self.found.live, error / (limit * floor), 0.0)
            for error, floor, limit in zip(
                (self.found.relative, self.found.peak),
                (self.norm, self.peak),
                self.limits,
                strict=True,
            )
        ]
        return np.asarray(np.maximum(*figures))

    def of_errors(self, rows: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return norm and peak of errors that may be, in the units that the tap is judged in.

        Args:
            rows: which.
            errors: their size [rows, elements]; what a query does not see does not count.
        """
        errors = np.where(self._cells(rows), errors, 0.0)
        if self.reference.kind == "logits":
            reference = self.reference.array.reshape(self.reference.live.size, -1)[rows]
            sizes = logits.sizes(reference)
            # All of a token's log-probabilities move by the likely ones' errors as well.
            errors = np.hypot(errors, logits.expected_value(reference, errors)[:, None])
        else:
            norm, peak = self.reference.sizes
            sizes = norm.reshape(-1)[rows], peak.reshape(-1)[rows]
        return np.sqrt(np.square(errors).sum(-1)) / sizes[0], errors.max(-1) / sizes[1]

    def of_values(self, rows: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return how far values [rows, elements] are from the reference, as the tap is judged."""
        reference = self.reference.array.reshape(self.reference.live.size, -1)[rows]
        if self.reference.kind == "logits":
            return logits.distance(values.astype(np.float64), reference)
        return self.of_errors(rows, abs(values.astype(np.float64) - reference))

    def elements(self, rows: np.ndarray) -> np.ndarray:
        """Return how many elements of each row count."""
        cells = self._cells(rows)
        return np.broadcast_to(cells, (len(rows), self._width)).sum(-1)

    @property
    def _width(self) -> int:
        return self.reference.array.size // self.reference.live.size

    def _cells(self, rows: np.ndarray) -> np.ndarray:
        """Return which elements of rows count; of an attention map those that a query sees."""
        if self.reference.axes != "BNTS":
            return np.ones((1, 1), bool)
        b, _, t = np.unravel_index(rows, self.reference.live.shape)
        return np.asarray(self.reference.mask[b, t])

    def raise_to(self, rows: np.ndarray, norm: np.ndarray, peak: np.ndarray) -> None:
        """Let the floor be no lower than this; what overflowed is no measure."""
        for floor, found in ((self.norm, norm), (self.peak, peak)):
            flat = floor.reshape(-1)
            flat[rows] = np.maximum(flat[rows], np.where(np.isfinite(found), found, 0.0))


def widened_floor(
    floor: Floor,
    found: TapDifference,
    reference: ReferenceTap,
    operator: SummedTap,
    limits: tuple[float, float],
) -> Floor:
    """Return the floor of an operator's tap, raised where its subject is near an alarm.

    Args:
        floor: as measured.
        found: how far the subject is from the reference.
        reference: the reference's tap.
        operator: how the tap is summed.
        limits: on the norm and on the largest element, in units of noise.
    """
    near = _Near(found, reference, limits, floor.norm.copy(), floor.peak.copy())
    source = floor.source
    with np.errstate(all="ignore"):  # a faulty subject's figures may be anything
        for variance in (walk_variance, sum_variance):
            rows = near.rows(NEAR)
            if rows.size == 0:
                return Floor(near.norm, near.peak, source)
            source = "envelope"
            for some in _portions(operator, rows):
                near.raise_to(some, *_envelope(near, operator, some, variance))
        nearest = _tried(near, operator)
    return Floor(near.norm, near.peak, f"order: {nearest}" if nearest else source)


def _portions(operator: SummedTap, rows: np.ndarray) -> list[np.ndarray]:
    """Split rows so that a portion's factors and sums stay small."""
    if rows.size == 0:
        return []
    a, b = operator.factors(rows[:1])
    shared = b.shape[0] == 1 and a.shape[0] == 1
    each = max(a.size, b.shape[1]) if shared else max(a.size, b.size)
    size = max(1, _ELEMENTS // each)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _envelope(
    near: _Near, operator: SummedTap, rows: np.ndarray, variance: Variance
) -> tuple[np.ndarray, np.ndarray]:
    """Return an honest error's deviation, and what the largest of n Gaussian ones comes to."""
    sums = operator.sums(rows, _wide(_exact))
    error = np.sqrt(operator.sums(rows, _wide(variance)))
    norm, peak = near.of_errors(rows, ENVELOPE_SHARE * operator.carry(rows, sums, error))
    return norm, peak * np.maximum(1.0, np.sqrt(2 * np.log(near.elements(rows))))


def _exact(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray(a @ b.swapaxes(-1, -2))


def _wide(function: Variance) -> Variance:
    """Return the function in float64, a few outputs at a time."""

    def in_parts(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        step = max(1, _ELEMENTS // (b.shape[0] * b.shape[2]))
        wide = a.astype(np.float64)
        parts = [
            function(wide, b[:, start : start + step].astype(np.float64))
            for start in range(0, b.shape[1], step)
        ]
        return np.concatenate(parts, axis=-1)

    return in_parts


def _tried(near: _Near, operator: SummedTap) -> str:
    """Run the operator in every order on rows at or near a limit, as long as that excuses them.

    Returns:
        The order that errs most, and so comes nearest; `BEYOND` where the subject errs by more than
        any can; empty where no row was beyond its limit.
    """
    nearest, done = "", np.zeros(near.reference.live.size, bool)

    def left() -> np.ndarray:
        rows = near.rows(TRIED)
        return rows[~done[rows]]

    while (rows := left()[:_TRIED_ROWS]).size:
        done[rows] = True
        sums = operator.sums(rows, _wide(_exact))
        bound = operator.carry(rows, sums, operator.sums(rows, _wide(error_bound)))
        if not _excused(near, rows, *near.of_errors(rows, bound)):
            return nearest or BEYOND
        largest = 0.0
        tried = np.zeros(len(rows)), np.zeros(len(rows))
        for order in TRIALS:
            norm, peak = _in_order(near, operator, rows, order)
            if norm.max() > largest:
                largest, nearest = float(norm.max()), order
            tried = np.maximum(tried[0], norm), np.maximum(tried[1], peak)
        near.raise_to(rows, *tried)
        if not _excused(near, rows, *tried):
            break
        for some in _portions(operator, left()):  # what is left is mostly the same
            near.raise_to(some, *_in_order(near, operator, some, nearest))
    return nearest


def _in_order(
    near: _Near, operator: SummedTap, rows: np.ndarray, order: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the operator's own error, summed in one of `TRIALS`, at some rows."""
    return near.of_values(rows, operator.finish(rows, operator.sums(rows, TRIALS[order])))


def _excused(near: _Near, rows: np.ndarray, norm: np.ndarray, peak: np.ndarray) -> bool:
    """Return whether floors as high as these leave none of the rows beyond its limit.

    What overflowed is no measure: `_Near.raise_to` does not take it either.
    """
    norm, peak = (np.where(np.isfinite(one), one, 0.0) for one in (norm, peak))
    pairs = (near.found.relative, norm, near.limits[0]), (near.found.peak, peak, near.limits[1])
    floors = (near.norm, near.peak)
    return all(
        bool((error.reshape(-1)[rows] <= limit * np.maximum(f.reshape(-1)[rows], new)).all())
        for (error, new, limit), f in zip(pairs, floors, strict=True)
    )
