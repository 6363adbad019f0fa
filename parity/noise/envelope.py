"""How far a float32 sum of products may honestly be off, whatever the order it is summed in.

NumPy alone. Shapes: G groups, R rows, O outputs, K terms of a sum.

A product that is summed one term after the other rounds each partial sum s_k, by an error that is
spread evenly over u |s_k| to either side: its variance is u^2 s_k^2 / 3. The products round too,
where they are not fused into the sum: sum p_k^2 = Q in place of the partial sums. What the partial
sums are depends on the order, and which order a machine takes on its library and instruction set.
Three estimates of sum s_k^2 are taken, and the largest counts:

- terms without order: a walk of K steps of size sqrt(Q / K) that ends at y has partial sums whose
  squares add up to less than K (y^2 + Q);
- terms in the order they stand in, from either end: partial sums s_j are formed at every
  `STRIDE`th k, and s_j or y - s_j stands for the steps up to there that count. Terms that hang
  together by their place (positive before the middle, negative after it) have far larger partial
  sums than a walk;
- terms in lanes: n lanes of K / n terms each end at sums L_i, on the average of a straight way
  there (K / n) L_i^2 / 3. Signs that alternate cancel in a row and not in a lane.

Equal terms err to one side all the time, and no variance tells that: `parity.noise.orders` tries.
"""

from __future__ import annotations

import numpy as np

from parity.comparison.tolerance import UNIT_ROUNDOFF

STRIDE = 32
SUM_LANES = (4, 8, 16)


def walk_variance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the variance of sums of terms without order, as `sum_variance` does."""
    y, squares, count = _sums(a, b)
    return UNIT_ROUNDOFF["f32"] ** 2 / 3 * count * (y**2 + squares)


def sum_variance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the variance [G R O] of the rounding error of sum_k a[g, r, k] b[g, o, k].

    Args:
        a: [G R K] float64.
        b: [G O K] float64; terms whose `a` is zero do not count.
    """
    y, squares, count = _sums(a, b)
    K = a.shape[-1]
    partial, in_order = np.zeros_like(y), np.zeros_like(y)
    for start in range(0, K, STRIDE):
        here = a[..., start : start + STRIDE]
        partial += _product(here, b[..., start : start + STRIDE])
        steps = np.count_nonzero(here, axis=-1)[..., None]
        in_order += steps * np.maximum(partial**2, (y - partial) ** 2)
    found = np.maximum(count * (y**2 + squares), in_order + count * squares)
    for n in SUM_LANES:
        ends = sum(_product(a[..., i::n], b[..., i::n]) ** 2 for i in range(min(n, K)))
        found = np.maximum(found, count * (y**2 + squares + ends / (3 * n)))
    return UNIT_ROUNDOFF["f32"] ** 2 / 3 * found


def error_bound(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return what the error of no order of summing can exceed [G R O].

    That is (K + 4) u sum |p_k| (Higham, Accuracy and Stability of Numerical Algorithms, section
    3.1), K being the terms that count, and the 4 for factors and result that round as well.

    Args:
        a: [G R K] float64.
        b: [G O K] float64.
    """
    count = np.count_nonzero(a, axis=-1)[..., None]
    return np.asarray(UNIT_ROUNDOFF["f32"] * (count + 4) * _product(abs(a), abs(b)))


def _sums(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return sum p_k, sum p_k^2 [G R O], and how many terms count [G R 1]."""
    return _product(a, b), _product(a**2, b**2), np.count_nonzero(a, axis=-1)[..., None]


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray(a @ b.swapaxes(-1, -2))
