"""What only attention maps must satisfy: who carries weight, and how far weights may move.

Shapes: B batch, N heads, T queries, S keys.
"""

from __future__ import annotations

import numpy as np

from parity.comparison.difference import TapDifference, WorstElement
from parity.comparison.reference import ReferenceTap

# What rounding inside a softmax may move weights by, in spacings eps = 2u of its dtype and beyond
# what its scores' own difference explains. With |score| <= size, score - max is at most 2 size and
# rounds by eps/2 of it: each exponential is off by eps * size. The exponential itself is good to
# eps, the quotient and the stored weight round by eps/2 each: eps * (size + 2) for a weight, the
# same again for the sum that divides it, and half of that together is total variation. A sum of n
# terms adds sqrt(n) eps/4 if its roundings are random. Of size and 2 + sqrt(n)/8 the constants are
# twice and more, up to n = 256 keys summed in a row; kernels sum longer rows in blocks. `parity
# selftest --calibrate` prints how much of it clean runs use.
SOFTMAX_STEPS, SCORE_STEPS = 8, 2
_SINGLE = float(np.finfo(np.float32).eps)
# By what share of themselves rounded scores may have moved, for all that a zero says of a key.
# More where a row of the map has moved by a tenth of itself: scores have drifted there, layer upon
# layer, and a row whose largest has drifted shows nothing but its underflows. A lost key takes away
# no more than its own weight: what weighs more than 1e-19 must be there in any case.
UNMOVED, DRIFT, DRIFTED = 0.2, 0.5, 0.1


def check_rows(result: TapDifference, reference: ReferenceTap, probs: np.ndarray) -> None:
    """Require that exactly the visible keys carry weight, and that it adds up to 1.

    A hidden key must get an exact zero. A visible one may be zero only by underflow: where the
    reference itself is below what the subject's dtype can hold.
    """
    moved = result.relative[reference.live].max(initial=0.0) > DRIFTED
    smallest = _underflow(probs.dtype, DRIFT if moved else UNMOVED)
    found: dict[str, list[tuple[int, int, int, int]]] = {}
    counts: dict[str, int] = {}
    flat, flat_reference = (
        array.reshape(-1, probs.shape[-1]) for array in (probs, reference.array)
    )
    flat_live = reference.live.reshape(-1)
    sums = np.ones(reference.live.size)
    bits = f"u{probs.dtype.itemsize}"  # faster to look through than bfloat16
    for rows, cells, (p,) in reference.blocks(probs):
        assert cells is not None
        if flat[rows, p.shape[1] :].view(bits).any():
            p, cells = flat[rows].astype(np.float64), reference.cells(rows)
        sums[rows] = p.sum(1)
        carried = p != 0
        if np.array_equal(carried, cells):
            continue
        expected, live = flat_reference[rows, : p.shape[1]], flat_live[rows][:, None]
        leaked = carried & ~cells & live
        lost = ~carried & (expected >= smallest) & cells & live
        for wrong, what in (
            (leaked, "hidden keys carry weight"),
            (lost, "visible keys carry none"),
        ):
            for r, k in np.argwhere(wrong):
                b, n, q = np.unravel_index(rows.start + r, reference.live.shape)
                found.setdefault(what, []).append((int(b), int(n), int(q), int(k)))
                break
            counts[what] = counts.get(what, 0) + int(wrong.sum())
    for what, cells_found in found.items():
        b, n, q, k = min(cells_found, key=lambda cell: (cell[0], cell[2], cell[1]))
        values = float(probs[b, n, q, k]), float(reference.array[b, n, q, k])
        result.add_structural(
            f"{counts[what]} {what}; the first: row {b}, head {n}, query {q}, key {k}, "
            f"weight {values[0]:.3g}, reference {values[1]:.3g}"
        )
        if result.worst is None:
            result.worst = WorstElement({"B": b, "N": n, "T": q, "S": k}, *values)
    result.facts["row_sum_error"] = float(np.abs(sums - 1.0)[flat_live].max(initial=0.0))


def row_sum_allowance(dtype: np.dtype, keys: int) -> float:
    """Return by how much rounding alone may keep a row of weights from adding up to 1.

    Each weight is rounded once to its dtype, and their sum, inside the softmax, once per key in at
    least float32.
    """
    return 2 * _epsilon(dtype) + keys * min(_epsilon(dtype), _SINGLE)


def total_variation(
    scores: np.ndarray,
    reference_scores: ReferenceTap,
    probs: np.ndarray,
    reference_probs: ReferenceTap,
) -> tuple[float, float, float]:
    """Return the largest total variation over rows, and what the score difference allows there.

    A softmax whose scores move by a difference of range R over the visible keys moves its weights
    by at most tanh(R / 4) in total variation, and there are scores for which it moves by exactly
    that. On top come the roundings of exponentials and of the weights, see `SOFTMAX_STEPS`.

    Returns:
        (total variation, bound, share) of the row that uses most of what is allowed for rounding;
        above a share of 1 it passes its bound.
    """
    unit = max(_epsilon(scores.dtype), _epsilon(probs.dtype))
    worst, at_bound, share = 0.0, 0.0, -np.inf
    everything = scores, reference_scores.array, probs, reference_probs.array
    for rows, cells, (t, g, weights, reference_weights) in reference_scores.blocks(*everything):
        assert cells is not None
        live = reference_scores.live.reshape(-1)[rows]
        with np.errstate(invalid="ignore"):  # hidden or dead cells may hold anything
            delta = t - g
            high = np.where(cells, delta, -np.inf).max(1)
            low = np.where(cells, delta, np.inf).min(1)
            spread = np.where(live, high - low, 0.0)
            size = np.where(cells, np.abs(g), 0.0).max(1)
            moved = 0.5 * np.abs(weights - reference_weights).sum(1)
        moved = np.where(live, moved, 0.0)
        slack = unit * (SOFTMAX_STEPS + SCORE_STEPS * size)
        used = (moved - np.tanh(spread / 4)) / slack
        row = int(np.argmax(used))
        if used[row] > share:
            share, worst = float(used[row]), float(moved[row])
            at_bound = worst + (1 - share) * float(slack[row])
    return worst, at_bound, share


def _underflow(dtype: np.dtype, drift: float) -> float:
    """Return the reference's weight from which on zero is no underflow.

    float64 decides what is visible. Weights in float32 (bfloat16 shares its exponents) may come of
    scores in bfloat16, whose 87 below the row's largest have honestly drifted by an eighth: a fifth
    is allowed, which makes 5e-31.

    Args:
        dtype: of the weights.
        drift: by what share of themselves scores may have moved.
    """
    if dtype == np.float64:
        return 2 * float(np.finfo(np.float64).tiny)
    return float(np.finfo(dtype if dtype.kind == "f" else np.float32).tiny) ** (1 - drift)


def _epsilon(dtype: np.dtype) -> float:
    """Return the spacing of numbers at 1: 2^-7 for bfloat16, which NumPy itself does not know."""
    return float(np.finfo(dtype).eps) if dtype.kind == "f" else 2.0**-7


# How far weights moved, how far they may, what share of the rounding allowed for in that they use,
# and by how much rounding may keep rows from adding up to 1.
Movement = tuple[float, float, float, float]


def measure_movement(
    scores: np.ndarray,
    reference_scores: ReferenceTap,
    probs: np.ndarray,
    reference_probs: ReferenceTap,
) -> Movement:
    """Return how far weights moved, and what may have moved them; see `Movement`."""
    moved, allowed, share = total_variation(scores, reference_scores, probs, reference_probs)
    return moved, allowed, share, row_sum_allowance(probs.dtype, probs.shape[-1])


def bound_probabilities(
    found: TapDifference, moved: float, allowed: float, share: float, keeps: float
) -> None:
    """Require probabilities that add up, and moved no more than their scores account for."""
    if found.problems:
        return
    if found.facts["row_sum_error"] > keeps:
        found.problems.append(
            f"rows of weights add up to 1 within {found.facts['row_sum_error']:.3g} only; "
            f"rounding explains {keeps:.3g}"
        )
    found.facts |= {"total_variation": moved, "total_variation_rounding": max(share, 0.0)}
    if moved > allowed:
        found.problems.append(
            f"total variation {moved:.3g}, but the scores explain {allowed:.3g} at most: "
            "mask or softmax differs"
        )
