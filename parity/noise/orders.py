"""Sums of products in float32, in the orders that machines take, for a trial before an alarm.

NumPy alone. Shapes: G groups, R rows, O outputs, K terms of a sum.

An order sorts the terms by their place alone. One that sorts them by value no machine takes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

# From the number of terms to the terms of each lane [lanes, steps]: lanes are summed beside each
# other, one term after the other, and then added up from the first to the last. -1 is no term.
Order = Callable[[int], np.ndarray]

# Accumulators that are held at once.
_ELEMENTS = 1 << 22


def _lanes(count: int) -> Order:
    """Term i goes to lane i mod `count`, as in a vector register."""
    return lambda terms: _padded(terms, -(-terms // count), count).T


def _blocks(size: int) -> Order:
    """`size` neighbours make a block, as in a kernel that is unrolled so often."""
    return lambda terms: _padded(terms, -(-terms // size), size)


def _padded(terms: int, rows: int, columns: int) -> np.ndarray:
    places = np.arange(rows * columns)
    return np.where(places < terms, places, -1).reshape(rows, columns)


ORDERS: dict[str, Order] = {
    "serial": lambda terms: np.arange(terms)[None],
    "reversed": lambda terms: np.arange(terms)[None, ::-1],
    **{f"blocks of {n}": _blocks(n) for n in (4, 16, 64)},
    **{f"{n} lanes": _lanes(n) for n in (4, 8, 16)},
    "halves": lambda terms: _padded(terms, 2, -(-terms // 2)),
}


def ordered_sum(a: np.ndarray, b: np.ndarray, order: Order, *, fused: bool) -> np.ndarray:
    """Return sum_k a[g, r, k] b[g, o, k] as a machine that sums in this order does [G R O].

    Args:
        a: [G R K] float32.
        b: [G O K] float32.
        order: one of `ORDERS`.
        fused: whether each product is added without having been rounded.
    """
    lanes = order(a.shape[-1])
    outputs = max(1, _ELEMENTS // max(1, a.shape[0] * a.shape[1] * len(lanes)))
    parts = [
        _lanes_summed(a, b[:, start : start + outputs], lanes, fused)
        for start in range(0, b.shape[1], outputs)
    ]
    return np.concatenate(parts, axis=-1)


def _lanes_summed(a: np.ndarray, b: np.ndarray, lanes: np.ndarray, fused: bool) -> np.ndarray:
    total = np.zeros((*a.shape[:2], b.shape[1], len(lanes)), np.float32)
    for step in lanes.T:
        x = np.where(step >= 0, a[..., step], 0)[:, :, None, :]
        y = b[..., step][:, None, :, :]
        if fused:  # the product of two float32 numbers is exact in float64
            total = (x.astype(np.float64) * y + total).astype(np.float32)
        else:
            total += x * y
    found = total[..., 0]
    for lane in range(1, len(lanes)):
        found = found + total[..., lane]
    return found


# Every order, with rounded and with fused products, by what reports call it.
TRIALS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    name + ", fused" * fused: partial(ordered_sum, order=order, fused=fused)
    for name, order in ORDERS.items()
    for fused in (False, True)
}
