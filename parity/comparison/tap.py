"""The distance between two arrays of one tap, per token, and what no tolerance excuses.

NumPy alone. Arithmetic is float64 whatever the arrays' dtype, in blocks that stay in a processor's
cache: comparing costs as much as computing otherwise.
"""

from __future__ import annotations

import numpy as np

from parity.comparison import attention, logits
from parity.comparison.difference import TapDifference, WorstElement, finite_difference
from parity.comparison.reference import ReferenceTap
from parity.taps import layout_hint


def difference(
    name: str, subject: np.ndarray, reference: np.ndarray, valid: np.ndarray, mask: np.ndarray
) -> TapDifference:
    """Compare one tap with its reference; see `ReferenceTap` for the arguments and
    `compare_tap`.
    """
    return compare_tap(ReferenceTap(name, reference, valid, mask), subject)


def compare_tap(
    reference: ReferenceTap, subject: np.ndarray, *, locate: bool = True
) -> TapDifference:
    """Return how far `subject` is from the reference.

    A shape mismatch is reported as a problem, never repaired.

    Args:
        reference: the reference's tap.
        subject: the same tap of another.
        locate: whether to say which element differs most.
    """
    result = _against(reference, subject, locate)
    result.dtype = subject.dtype.name
    return result


def _against(reference: ReferenceTap, subject: np.ndarray, locate: bool) -> TapDifference:
    if subject.shape != reference.array.shape:
        empty = np.zeros((1,))
        axes = ", ".join(reference.axes)
        problem = f"shape {subject.shape}, the reference has {reference.array.shape} ({axes})"
        hint = layout_hint(subject.shape, reference.axes, reference.array.shape)
        problem += f"; {hint}" if hint else ""
        return TapDifference(empty, empty, np.ones((1,), bool), problems=[problem], structural=True)
    if reference.kind in ("positions", "mask"):
        return _exact(reference, subject)
    if reference.kind == "logits":
        return logits.compare(reference, subject, locate=locate)
    result = _rows(reference, subject)
    if locate:
        result.worst = _worst(reference, subject, result.relative)
    if reference.kind == "layers.attn_probs":
        attention.check_rows(result, reference, subject)
    return result


def _rows(reference: ReferenceTap, subject: np.ndarray) -> TapDifference:
    """Compare row by row."""
    flat_relative, flat_peak = np.zeros(reference.live.size), np.zeros(reference.live.size)
    live = reference.live.reshape(-1)
    broken = 0
    for rows, cells, (t, g) in reference.blocks(subject, reference.array):
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
    relative, peak = (flat.reshape(reference.live.shape) for flat in (flat_relative, flat_peak))
    for array, size in zip((relative, peak), reference.sizes, strict=True):
        array[~reference.live] = 0.0
        with np.errstate(over="ignore"):  # against a reference of nothing
            array /= size
    result = TapDifference(relative, peak, reference.live)
    if broken:
        result.add_structural(f"{broken} elements are NaN or infinite in one and not in the other")
    return result


def _worst(
    reference: ReferenceTap, subject: np.ndarray, relative: np.ndarray
) -> WorstElement | None:
    """Return the element that differs most in the row that differs most."""
    if not relative.size or not relative.max() > 0:
        return None
    row = np.unravel_index(int(np.argmax(relative)), relative.shape)
    t, g = (
        a.reshape(*relative.shape, -1)[row].astype(np.float64) for a in (subject, reference.array)
    )
    delta, _ = finite_difference(t[None], g[None], np.ones(1, bool), None)
    if reference.axes == "BNTS":
        delta = np.where(reference.mask[row[0], row[2]], delta, 0.0)
    column = int(np.abs(delta[0]).argmax())
    place = int(relative.argmax()) * delta.size + column
    inner = np.unravel_index(place, subject.shape) if subject.shape else ()
    index = dict(zip(reference.axes, map(int, inner), strict=True))
    return WorstElement(index, float(t[column]), float(g[column]))


def _exact(reference: ReferenceTap, subject: np.ndarray) -> TapDifference:
    """Compare integers or booleans: equal on every real token's row, or a problem."""
    valid = reference.valid
    unequal = (subject != reference.array).reshape(*valid.shape, -1) & valid[..., None]
    counts = unequal.sum(-1).astype(np.float64)
    result = TapDifference(counts, counts, valid)
    total = int(counts.sum())
    if total:
        row = np.argwhere(unequal)[0]
        where = tuple(int(i) for i in row[: subject.ndim])
        index = dict(zip(reference.axes, where, strict=True))
        result.worst = WorstElement(index, float(subject[where]), float(reference.array[where]))
        result.add_structural(f"{total} of {unequal.size} entries differ")
    return result
