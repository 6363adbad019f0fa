"""Comparing logits: what a constant shift of all of them does not move, and what it would change.

Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from parity.comparison.difference import TapDifference, WorstElement, finite_difference
from parity.comparison.reference import ReferenceTap
from parity.comparison.tolerance import noise_floor

# exp overflows a little beyond; log-probabilities this far apart need no digits saved.
_LARGEST = 700.0
# Differences of log-probabilities below this have expm1(d) - d = d^2/2 + d^3/6 to 1e-9 relative.
_SERIES = 1e-4


def compare(reference: ReferenceTap, subject: np.ndarray, *, locate: bool = True) -> TapDifference:
    """Compare log-softmax per token.

    `facts` hold the largest shift, the Kullback-Leibler divergence from the reference's
    distribution summed over the vocabulary (largest and 99.9th percentile over tokens), the range R
    of the difference, and the top-1 flips with the reference margin of the least excusable one.
    """
    live = reference.valid
    names = ("relative", "peak", "shift", "kl", "range", "margin")
    flat = {name: np.zeros(live.size) for name in names}
    broken = 0
    for rows, _, (t, g) in reference.blocks(subject, reference.array):
        if not (np.isfinite(t).all() and np.isfinite(g).all()):
            gap, wrong = finite_difference(t, g, live.reshape(-1)[rows], None)
            broken += wrong
            flat["relative"][rows] = flat["peak"][rows] = np.abs(gap).max(1)
            flat["margin"][rows] = -1.0
            continue
        for name, values in _token_figures(t, g).items():
            flat[name][rows] = values
    figures = {name: values.reshape(live.shape) for name, values in flat.items()}
    for name, values in figures.items():
        values[~live] = -1.0 if name == "margin" else 0.0
    result = TapDifference(figures["relative"], figures["peak"], live)
    if broken:
        result.add_structural(f"{broken} elements are NaN or infinite in one and not in the other")
    flips = figures["margin"] >= 0
    result.facts |= {
        "shift": float(figures["shift"].max()),
        "kl_max": float(figures["kl"].max()),
        "kl_p999": float(np.quantile(figures["kl"][live], 0.999)) if live.any() else 0.0,
        "range": float(figures["range"].max()),
        "top1_flips": int(flips.sum()),
        "flip_margin": float(figures["margin"].max()) if flips.any() else 0.0,
    }
    result.tokens |= {name: figures[name] for name in ("range", "margin", "kl")}
    if locate:
        result.worst = _worst(reference, subject, figures["relative"])
    return result


def distance_of_logits(ours: np.ndarray, theirs: np.ndarray, valid: np.ndarray) -> float:
    """Return how far logits [B T V] are apart, relative, at the worst token.

    A shift of all of a token's logits counts for nothing. Infinite where one is not finite.
    """
    worst = 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        for b, q in np.argwhere(valid):  # one token's are as many as a processor's cache holds
            t, g = (array[b, q].astype(np.float64) for array in (ours, theirs))
            moved = t - g
            moved -= moved.mean()
            g -= g.mean()
            apart = float(np.sqrt(moved @ moved / max(g @ g, np.finfo(np.float64).tiny)))
            worst = max(worst, apart if np.isfinite(apart) else np.inf)
    return worst


def _token_figures(t: np.ndarray, g: np.ndarray) -> dict[str, np.ndarray]:
    """Return the figures of some tokens' logits, both [r, V]."""
    log_g = g - g.max(1, keepdims=True)
    probs = np.exp(log_g)
    total = probs.sum(1, keepdims=True)
    log_g -= np.log(total)
    probs /= total
    moved = t - g
    # The difference of the log-normalisers, from the moves alone: exact where they are small.
    base = moved[np.arange(len(t)), g.argmax(1)][:, None]
    delta = moved - base
    far = delta.max(1) > _LARGEST
    gained = np.einsum("rv,rv->r", probs, np.expm1(np.minimum(delta, _LARGEST)))
    delta -= np.log1p(gained)[:, None]
    if far.any():
        log_t = t[far] - t[far].max(1, keepdims=True)
        delta[far] = log_t - np.log(np.exp(log_t).sum(1, keepdims=True)) - log_g[far]
    extra = delta * delta * (0.5 + delta / 6)
    if np.abs(delta).max(initial=0.0) > _SERIES:
        extra = np.expm1(np.minimum(delta, _LARGEST)) - delta
    best_t, best_g, row = t.argmax(1), g.argmax(1), np.arange(len(t))
    margin = g[row, best_g] - g[row, best_t]
    return {
        "relative": np.sqrt(
            np.einsum("rv,rv->r", delta, delta) / np.einsum("rv,rv->r", log_g, log_g)
        ),
        "peak": np.maximum(delta.max(1), -delta.min(1)) / -log_g.min(1),
        "shift": np.abs(base[:, 0]),
        # KL = sum p (expm1(d) - d): every term is at least 0, so nothing cancels.
        "kl": np.einsum("rv,rv->r", probs, extra),
        "range": moved.max(1) - moved.min(1),
        "margin": np.where(best_t != best_g, margin, -1.0),
    }


def sizes(reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what differences of some tokens' logits [r, V] are relative to: norm and peak [r]."""
    log_g = reference - reference.max(1, keepdims=True)
    log_g -= np.log(np.exp(log_g).sum(1, keepdims=True))
    return np.sqrt(np.einsum("rv,rv->r", log_g, log_g)), -log_g.min(1)


def expected_value(reference: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the mean [r] of values [r, V] under the distributions of logits [r, V]."""
    powers = np.exp(reference - reference.max(1, keepdims=True))
    return np.asarray((powers * values).sum(1) / powers.sum(1))


def distance(logits: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how far some tokens' logits [r, V] are from the reference's, as `compare` has it
    [r].
    """
    figures = _token_figures(logits, reference)
    return figures["relative"], figures["peak"]


def _worst(
    reference: ReferenceTap, subject: np.ndarray, relative: np.ndarray
) -> WorstElement | None:
    if not relative.max(initial=0.0) > 0:
        return None
    b, q = (int(i) for i in np.unravel_index(int(relative.argmax()), relative.shape))
    t, g = subject[b, q].astype(np.float64), reference.array[b, q]
    gap, _ = finite_difference(t[None], g[None], np.ones(1, bool), None)
    token = int(np.abs(gap[0]).argmax())
    return WorstElement({"B": b, "T": q, "V": token}, float(t[token]), float(g[token]))


def explain_flips(found: TapDifference, honest: Sequence[TapDifference], limit: np.ndarray) -> None:
    """A changed top-1 is explained where the reference's margin is within what noise moves logits
    by.

    The noise is that of honest variants at the same token: the subject's own range of movement
    always accounts for its own flips.
    """
    if "margin" not in found.tokens:
        return
    ranges = [d.tokens["range"] for d in honest if "range" in d.tokens]
    allowed = limit * noise_floor(ranges, found.live, 0.0)
    unexplained = found.tokens["margin"] > allowed
    found.facts["unexplained_flips"] = int(unexplained.sum())
    if unexplained.any():
        margins = np.where(unexplained, found.tokens["margin"], 0.0)
        at = np.unravel_index(int(np.argmax(margins)), margins.shape)
        found.problems.append(
            f"{int(unexplained.sum())} top-1 predictions differ beyond rounding; at row {at[0]}, "
            f"token {at[1]} the reference's margin is {margins[at]:.3g}, and "
            f"rounding explains {allowed[at]:.3g}"
        )
