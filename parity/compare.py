"""The distance between two arrays of one tap, per token: relative, peak, and what no tolerance excuses.

NumPy alone. Arithmetic is float64 whatever the arrays' dtype.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from parity.taps import AXES, split_name

# A token whose gold is nearly zero has no meaningful relative error of its own: it is measured
# against this fraction of its tap's median token.
_SCALE_FLOOR = 0.1
# Columns of logits handled at once, so that a large vocabulary needs no second copy of itself.
_LOGIT_TOKENS = 64


@dataclass(frozen=True)
class Worst:
    """The single element that differs most: where it is and both values."""

    index: dict[str, int]
    subject: float
    gold: float


@dataclass
class Difference:
    """How far one tap of one run is from the gold.

    Attributes:
        relative: per token (for attention maps per head and token) norm of the difference over the
            norm of the gold; 0 where nothing is to be compared.
        peak: the same with the largest element in place of the norm.
        live: which entries of `relative` count.
        worst: the element that differs most.
        problems: differences no tolerance excuses: shape, finiteness, mask support, exact values.
        facts: further figures worth reporting, by name.
    """

    relative: np.ndarray
    peak: np.ndarray
    live: np.ndarray
    worst: Worst | None = None
    problems: list[str] = field(default_factory=list)
    facts: dict[str, float] = field(default_factory=dict)


def difference(
    name: str, subject: np.ndarray, gold: np.ndarray, valid: np.ndarray, mask: np.ndarray
) -> Difference:
    """Compare one tap.

    Args:
        name: canonical tap name; decides the layout.
        subject: the array under test.
        gold: the float64 reference, same layout.
        valid: [B, T] bool, False for pads, which are not compared.
        mask: [B, T, S] bool, what each query is meant to see.

    Returns:
        The difference; a shape mismatch is reported as a problem, never repaired.
    """
    kind, _ = split_name(name)
    axes = AXES[kind]
    if subject.shape != gold.shape:
        empty = np.zeros((1,))
        problem = f"shape {subject.shape}, the reference has {gold.shape} ({', '.join(axes)})"
        return Difference(empty, empty, np.ones((1,), bool), problems=[problem])
    if kind in ("positions", "mask"):
        return _exact(axes, subject, gold, valid)
    if kind == "rope.inv_freq":
        everything = np.ones(gold.shape, bool)
        return _rows(axes, subject[:, None], gold[:, None], everything, None)
    if axes == "BNTS":
        live = (valid & mask.any(-1))[:, None, :] & np.ones((1, gold.shape[1], 1), bool)
        result = _rows(axes, subject, gold, live, mask[:, None])
        if kind == "layers.attn_probs":
            _check_support(result, subject, gold, mask, live)
        return result
    if kind == "logits":
        return _logits(subject, gold, valid)
    return _rows(axes, subject, gold, valid, None)


def _rows(
    axes: str,
    subject: np.ndarray,
    gold: np.ndarray,
    live: np.ndarray,
    cells: np.ndarray | None,
) -> Difference:
    """Compare row by row: the leading axes named by `live` index rows, the rest is a row."""
    rows = live.shape
    t, g = subject.astype(np.float64), gold.astype(np.float64, copy=False)
    if cells is not None:
        t, g = np.where(cells, t, 0.0), np.where(cells, g, 0.0)
    t, g = t.reshape(*rows, -1), g.reshape(*rows, -1)
    problems = _finiteness(t, g, live)
    if problems:
        t, g = np.nan_to_num(t), np.nan_to_num(g)
    delta = np.abs(t - g)
    delta[~live] = 0.0
    norm_g, peak_g = np.sqrt(np.einsum("...i,...i->...", g, g)), np.abs(g).max(-1)
    norm_d, peak_d = np.sqrt(np.einsum("...i,...i->...", delta, delta)), delta.max(-1)
    result = Difference(
        relative=norm_d / _at_least(norm_g, live),
        peak=peak_d / _at_least(peak_g, live),
        live=live,
        problems=problems,
    )
    if peak_d.size and peak_d.max() > 0:
        row = np.unravel_index(int(np.argmax(result.relative)), rows)
        column = int(delta[row].argmax())
        inner = np.unravel_index(column, subject.shape[len(rows) :] or (1,))
        index = dict(zip(axes, map(int, (*row, *inner)), strict=False))
        result.worst = Worst(index, float(t[row][column]), float(g[row][column]))
    return result


def _at_least(sizes: np.ndarray, live: np.ndarray) -> np.ndarray:
    median = float(np.median(sizes[live])) if live.any() else 0.0
    return np.maximum(sizes, max(_SCALE_FLOOR * median, np.finfo(np.float64).tiny))


def _finiteness(t: np.ndarray, g: np.ndarray, live: np.ndarray) -> list[str]:
    """Return a problem where NaN or infinity (with its sign) is not where the gold has it."""
    if np.isfinite(t[live]).all() and np.isfinite(g[live]).all():
        return []
    same = (np.isnan(t) & np.isnan(g)) | (t == g) | (np.isfinite(t) & np.isfinite(g))
    wrong = int((~same[live]).sum())
    if not wrong:
        return []
    return [f"{wrong} elements are NaN or infinite in one and not in the other"]


def _exact(axes: str, subject: np.ndarray, gold: np.ndarray, valid: np.ndarray) -> Difference:
    """Compare integers or booleans: equal on every real token's row, or a problem."""
    unequal = (subject != gold).reshape(*valid.shape, -1) & valid[..., None]
    counts = unequal.sum(-1).astype(np.float64)
    result = Difference(counts, counts, valid)
    total = int(counts.sum())
    if total:
        row = np.argwhere(unequal)[0]
        index = dict(zip(axes, map(int, row), strict=False))
        where = tuple(row[: subject.ndim])
        result.worst = Worst(index, float(subject[where]), float(gold[where]))
        result.problems.append(f"{total} of {unequal.size} entries differ")
    return result


def _check_support(
    result: Difference, probs: np.ndarray, gold: np.ndarray, mask: np.ndarray, live: np.ndarray
) -> None:
    """Require that exactly the visible keys carry weight.

    A hidden key must get an exact zero. A visible one may be zero only by underflow: where the
    gold itself is below what the subject's dtype can hold.
    """
    smallest = _tiny(probs.dtype)
    leaked = (probs != 0) & ~mask[:, None] & live[..., None]
    lost = (probs == 0) & (gold >= 2 * smallest) & mask[:, None] & live[..., None]
    for cells, what in ((leaked, "hidden keys carry weight"), (lost, "visible keys carry none")):
        if not cells.any():
            continue
        b, n, q, k = (int(i) for i in np.argwhere(cells)[0])
        result.problems.append(
            f"{int(cells.sum())} {what}; the first: row {b}, head {n}, query {q}, key {k}, "
            f"weight {float(probs[b, n, q, k]):.3g}, reference {float(gold[b, n, q, k]):.3g}"
        )
        if result.worst is None:
            values = float(probs[b, n, q, k]), float(gold[b, n, q, k])
            result.worst = Worst({"B": b, "N": n, "T": q, "S": k}, *values)
    sums = probs.sum(-1, dtype=np.float64)
    result.facts["row_sum_error"] = float(np.abs(sums - 1.0)[live].max()) if live.any() else 0.0


def _tiny(dtype: np.dtype) -> float:
    """Return the smallest normal number of a dtype (bfloat16 shares float32's exponents)."""
    return float(np.finfo(dtype if dtype.kind == "f" else np.float32).tiny)


def _logits(subject: np.ndarray, gold: np.ndarray, valid: np.ndarray) -> Difference:
    """Compare log-softmax, which a constant shift of all logits does not move.

    `facts` hold the largest shift, the Kullback-Leibler divergence summed over the vocabulary
    (largest and 99.9th percentile over tokens), the range R of the difference, and the top-1
    flips with the gold margin of the least excusable one.
    """
    B, T, _ = gold.shape
    relative, peak = np.zeros((B, T)), np.zeros((B, T))
    shift, divergence, spread = np.zeros((B, T)), np.zeros((B, T)), np.zeros((B, T))
    flip_margin = np.full((B, T), -1.0)
    problems: list[str] = []
    for b in range(B):
        for start in range(0, T, _LOGIT_TOKENS):
            rows = np.s_[b, start : start + _LOGIT_TOKENS]
            t, g = subject[rows].astype(np.float64), gold[rows].astype(np.float64)
            problems += _finiteness(t, g, valid[rows])
            if problems:
                t, g = np.nan_to_num(t), np.nan_to_num(g)
            log_t, log_g = _log_softmax(t), _log_softmax(g)
            delta = log_t - log_g
            size = np.sqrt(np.einsum("ti,ti->t", log_g, log_g))
            relative[rows] = np.sqrt(np.einsum("ti,ti->t", delta, delta)) / size
            peak[rows] = np.abs(delta).max(-1) / np.abs(log_g).max(-1)
            moved = t - g
            shift[rows] = np.abs(np.median(moved, axis=-1))
            spread[rows] = moved.max(-1) - moved.min(-1)
            # From the Bregman form p*(expm1(d)-d): every term is >= 0, so nothing cancels.
            divergence[rows] = (np.exp(log_g) * (np.expm1(delta) - delta)).sum(-1)
            best_t, best_g = t.argmax(-1), g.argmax(-1)
            row = np.arange(len(t))
            margin = g[row, best_g] - g[row, best_t]
            flip_margin[rows] = np.where(best_t != best_g, margin, -1.0)
    for array in (relative, peak, shift, divergence, spread):
        array[~valid] = 0.0
    flip_margin[~valid] = -1.0
    result = Difference(relative, peak, valid, problems=sorted(set(problems)))
    flips = flip_margin >= 0
    result.facts |= {
        "shift": float(shift.max()),
        "kl_max": float(divergence.max()),
        "kl_p999": float(np.quantile(divergence[valid], 0.999)),
        "range": float(spread.max()),
        "top1_flips": int(flips.sum()),
        "flip_margin": float(flip_margin.max()) if flips.any() else 0.0,
    }
    if relative.max() > 0:
        b, q = (int(i) for i in np.unravel_index(int(relative.argmax()), relative.shape))
        token = int(np.abs(subject[b, q].astype(np.float64) - gold[b, q]).argmax())
        values = float(subject[b, q, token]), float(gold[b, q, token])
        result.worst = Worst({"B": b, "T": q, "V": token}, *values)
    return result


def _log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def relative_gap(
    name: str, subject: np.ndarray, witness: np.ndarray, valid: np.ndarray, mask: np.ndarray
) -> float:
    """Return the largest per-token relative difference between two runs of one tap."""
    if split_name(name)[0] == "logits":
        subject, witness = subject[valid][None], witness[valid][None]
        valid = np.ones(subject.shape[:2], bool)
    return float(difference(name, subject, witness, valid, mask).relative.max())


def total_variation(
    scores: np.ndarray,
    gold_scores: np.ndarray,
    probs: np.ndarray,
    gold_probs: np.ndarray,
    mask: np.ndarray,
    live: np.ndarray,
) -> tuple[float, float]:
    """Return the largest total variation over rows, and what the score difference allows there.

    A softmax whose scores move by a difference of range R over the visible keys moves its weights
    by at most tanh(R / 4) in total variation, and there are scores for which it moves by exactly
    that. On top come the roundings of exponentials and of the weights themselves.

    Returns:
        (total variation, bound) of the row that comes closest to its bound or passes it most.
    """
    cells = mask[:, None]
    worst, at_bound, excess = 0.0, 0.0, -np.inf
    unit = max(float(np.finfo(np.float32 if d.kind != "f" else d).eps) for d in (scores.dtype,))
    unit = max(unit, _epsilon(probs.dtype))
    for b in range(scores.shape[0]):
        for n in range(scores.shape[1]):
            t, g = scores[b, n].astype(np.float64), gold_scores[b, n]
            delta = t - g
            high = np.where(cells[b, 0], delta, -np.inf).max(-1)
            low = np.where(cells[b, 0], delta, np.inf).min(-1)
            spread = np.where(live[b, n], high - low, 0.0)
            size = np.abs(np.where(cells[b, 0], g, 0.0)).max(-1)
            moved = 0.5 * np.abs(probs[b, n].astype(np.float64) - gold_probs[b, n]).sum(-1)
            moved = np.where(live[b, n], moved, 0.0)
            bound = np.tanh(spread / 4) + unit * (8 + 2 * size)
            row = int(np.argmax(moved - bound))
            if moved[row] - bound[row] > excess:
                worst, at_bound = float(moved[row]), float(bound[row])
                excess = worst - at_bound
    return worst, at_bound


def _epsilon(dtype: np.dtype) -> float:
    """Return the spacing of numbers at 1: 2^-7 for bfloat16, which NumPy itself does not know."""
    return float(np.finfo(dtype).eps) if dtype.kind == "f" else 2.0**-7
