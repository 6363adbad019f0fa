"""What comparing one tap yields."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class WorstElement:
    """The single element that differs most: where it is and both values."""

    index: dict[str, int]
    subject: float
    gold: float


@dataclass
class TapDifference:
    """How far one tap of one run is from the reference.

    Attributes:
        relative: per token (for attention maps per head and token) norm of the difference over the
            norm of the reference; 0 where nothing is to be compared.
        peak: the same with the largest element in place of the norm.
        live: which entries of `relative` count.
        worst: the element that differs most.
        problems: differences no tolerance excuses.
        structural: whether one of them is none of rounding: shape, finiteness, mask support, exact
            values.
        facts: further figures worth reporting, by name.
        tokens: figures per token, for judging them one by one.
        dtype: of the array under test.
    """

    relative: np.ndarray
    peak: np.ndarray
    live: np.ndarray
    worst: WorstElement | None = None
    problems: list[str] = field(default_factory=list)
    structural: bool = False
    facts: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, np.ndarray] = field(default_factory=dict)
    dtype: str = ""

    def add_structural(self, problem: str) -> None:
        """Add a problem that no rounding brings about."""
        self.problems.append(problem)
        self.structural = True

    def scale(self, factor: float) -> TapDifference:
        """Return what every figure would be at rounding that is `factor` as coarse."""
        tokens = {n: values * factor for n, values in self.tokens.items() if n == "range"}
        return TapDifference(self.relative * factor, self.peak * factor, self.live, tokens=tokens)


def finite_difference(
    t: np.ndarray, g: np.ndarray, live: np.ndarray, cells: np.ndarray | None
) -> tuple[np.ndarray, int]:
    """Subtract where both are finite; NaN and infinity must agree in place and sign.

    Args:
        t: rows [r, elements] of the subject.
        g: the same rows of the reference.
        live: [r], which rows count.
        cells: which elements count; None for all.

    Returns:
        The difference: 0 where both are NaN or the same infinity or nothing counts, infinite
        where they disagree about it; and how many elements do.
    """
    finite = np.isfinite(t) & np.isfinite(g)
    counts = np.broadcast_to(live[:, None], t.shape) if cells is None else cells & live[:, None]
    same = finite | (np.isnan(t) & np.isnan(g)) | (t == g)
    delta = np.subtract(t, g, out=np.zeros(t.shape), where=finite & counts)
    broken = ~same & counts
    delta[broken] = np.inf
    return delta, int(broken.sum())
