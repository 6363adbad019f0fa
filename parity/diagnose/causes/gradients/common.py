"""Gradients that a cause looks at, and how it makes the reference's wrong.

Shapes: B batch, T queries, S keys, N query heads, K kv heads, H head dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from parity.diagnose.evidence import Evidence
from parity.subjects.base import ReadArrays
from parity.taps import AXES, GRAD_TAPS, PARAMETER_GRADIENTS, WEIGHT_OF, split_name

# Short names of activations' and of parameters' gradients, as `Evidence.short` has them.
ACTIVATIONS = tuple(k for k in GRAD_TAPS if k != "loss" and k not in PARAMETER_GRADIENTS)
PARAMETERS = tuple(k for k in GRAD_TAPS if k in PARAMETER_GRADIENTS)
_OPERATORS = {f"grad.{weight}": t.removeprefix("layers.") for t, weight in WEIGHT_OF.items()}


def gradient_taps(*taps: str) -> tuple[str, ...]:
    """Return the short names of the gradients in some of a layer's taps."""
    return tuple(f"grad.layers.{tap}" for tap in taps)


def forward_tap(evidence: Evidence) -> str:
    """Return the forward tap that an activation's gradient belongs to, or a parameter's product."""
    short = evidence.short
    return _OPERATORS.get(short) or short.removeprefix("grad.").removeprefix("layers.")


def parameter(evidence: Evidence) -> str:
    """Return the name of the parameter whose gradient is at hand."""
    return evidence.tap.removeprefix("grad.")


@dataclass(frozen=True)
class Multiple:
    """The subject's gradient as a multiple of the reference's.

    Attributes:
        factor: the multiple nearest to it.
        rest: what the multiple leaves of it, relative to the reference's.
    """

    factor: float
    rest: float


def multiple(evidence: Evidence) -> Multiple | None:
    """Compare the gradient at hand with the reference's; None where that is 0 or one not finite."""
    given, right = (_live(evidence, taps[evidence.short]) for taps in _sides(evidence))
    if not right.any() or not (np.isfinite(given).all() and np.isfinite(right).all()):
        return None
    factor = float(given @ right / (right @ right))
    return Multiple(factor, float(np.linalg.norm(given - factor * right) / np.linalg.norm(right)))


def spoilt(evidence: Evidence) -> bool:
    """Return whether the subject's gradient at hand has NaN where the reference's has none."""
    given, right = (np.asarray(taps[evidence.short], np.float64) for taps in _sides(evidence))
    return bool(np.isnan(given).any() and not np.isnan(right).any())


def _sides(evidence: Evidence) -> tuple[ReadArrays, ReadArrays]:
    return evidence.subject, evidence.truth


def _live(evidence: Evidence, value: np.ndarray) -> np.ndarray:
    """Return the entries that carry a meaning, in one row."""
    axes, wide = AXES[split_name(evidence.tap)[0]], np.asarray(value, np.float64)
    if axes == "BNTS":
        seen = evidence.mask & evidence.valid[:, :, None]
        return wide.transpose(0, 2, 3, 1)[seen].ravel()
    return (wide[evidence.valid] if axes[:2] == "BT" else wide).ravel()
