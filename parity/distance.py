"""The distance between two arrays of one tap, per token, and what no tolerance excuses.

NumPy alone. Arithmetic is float64 whatever the arrays' dtype, in blocks that stay in a processor's
cache: comparing costs as much as computing otherwise.
"""

from __future__ import annotations

import numpy as np

from parity import attention_maps, logits
from parity.gold import Difference, Gold, Worst, finite_difference


def difference(
    name: str, subject: np.ndarray, gold: np.ndarray, valid: np.ndarray, mask: np.ndarray
) -> Difference:
    """Compare one tap with its reference; see `Gold` for the arguments and `against`."""
    return against(Gold(name, gold, valid, mask), subject)


def against(gold: Gold, subject: np.ndarray, *, locate: bool = True) -> Difference:
    """Return how far `subject` is from the gold.

    A shape mismatch is reported as a problem, never repaired.

    Args:
        gold: the reference's tap.
        subject: the same tap of another.
        locate: whether to say which element differs most.
    """
    result = _against(gold, subject, locate)
    result.dtype = subject.dtype.name
    return result


def _against(gold: Gold, subject: np.ndarray, locate: bool) -> Difference:
    if subject.shape != gold.array.shape:
        empty = np.zeros((1,))
        axes = ", ".join(gold.axes)
        problem = f"shape {subject.shape}, the reference has {gold.array.shape} ({axes})"
        return Difference(empty, empty, np.ones((1,), bool), problems=[problem], structural=True)
    if gold.kind in ("positions", "mask"):
        return _exact(gold, subject)
    if gold.kind == "logits":
        return logits.compare(gold, subject, locate=locate)
    result = _rows(gold, subject)
    if locate:
        result.worst = _worst(gold, subject, result.relative)
    if gold.kind == "layers.attn_probs":
        attention_maps.check_rows(result, gold, subject)
    return result


def _rows(gold: Gold, subject: np.ndarray) -> Difference:
    """Compare row by row."""
    flat_relative, flat_peak = np.zeros(gold.live.size), np.zeros(gold.live.size)
    live = gold.live.reshape(-1)
    broken = 0
    for rows, cells, (t, g) in gold.blocks(subject, gold.array):
        with np.errstate(invalid="ignore"):  # infinity less infinity
            delta = t - g
        if cells is not None:
            np.copyto(delta, 0.0, where=~cells)
        square = np.einsum("ri,ri->r", delta, delta)
        if not np.isfinite(square).all():
            delta, wrong = finite_difference(t, g, live[rows], cells)
            broken += wrong
            square = np.einsum("ri,ri->r", delta, delta)
        flat_relative[rows] = np.sqrt(square)
        flat_peak[rows] = np.maximum(delta.max(1), -delta.min(1)) + 0.0  # no -0.0
    relative, peak = (flat.reshape(gold.live.shape) for flat in (flat_relative, flat_peak))
    for array, size in zip((relative, peak), gold.sizes, strict=True):
        array[~gold.live] = 0.0
        with np.errstate(over="ignore"):  # against a gold of nothing
            array /= size
    result = Difference(relative, peak, gold.live)
    if broken:
        result.add_structural(f"{broken} elements are NaN or infinite in one and not in the other")
    return result


def _worst(gold: Gold, subject: np.ndarray, relative: np.ndarray) -> Worst | None:
    """Return the element that differs most in the row that differs most."""
    if not relative.size or not relative.max() > 0:
        return None
    row = np.unravel_index(int(np.argmax(relative)), relative.shape)
    t, g = (a.reshape(*relative.shape, -1)[row].astype(np.float64) for a in (subject, gold.array))
    delta, _ = finite_difference(t[None], g[None], np.ones(1, bool), None)
    if gold.axes == "BNTS":
        delta = np.where(gold.mask[row[0], row[2]], delta, 0.0)
    column = int(np.abs(delta[0]).argmax())
    place = int(relative.argmax()) * delta.size + column
    inner = np.unravel_index(place, subject.shape) if subject.shape else ()
    index = dict(zip(gold.axes, map(int, inner), strict=True))
    return Worst(index, float(t[column]), float(g[column]))


def _exact(gold: Gold, subject: np.ndarray) -> Difference:
    """Compare integers or booleans: equal on every real token's row, or a problem."""
    valid = gold.valid
    unequal = (subject != gold.array).reshape(*valid.shape, -1) & valid[..., None]
    counts = unequal.sum(-1).astype(np.float64)
    result = Difference(counts, counts, valid)
    total = int(counts.sum())
    if total:
        row = np.argwhere(unequal)[0]
        where = tuple(int(i) for i in row[: subject.ndim])
        index = dict(zip(gold.axes, where, strict=True))
        result.worst = Worst(index, float(subject[where]), float(gold.array[where]))
        result.add_structural(f"{total} of {unequal.size} entries differ")
    return result
