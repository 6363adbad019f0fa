"""How far a score may be from what other examples of the same kind would give: paired resampling.

Shapes: n examples, k statistics of one, R resamples, M models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, stdtrit

RESAMPLES = 10_000
# All intervals of a report hold together, by Bonferroni, so often.
CONFIDENCE = 0.95
# Of fewer nothing is said: six coins all fall alike once in 32 times.
LEAST_EXAMPLES = 8
# Numbers of one block of resampled counts.
_BLOCK = 1 << 22
# Of statistics added up over examples [R k], the score of each sum [R].
Score = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Interval:
    """Where a figure lies, by resampling.

    Attributes:
        low, high: its ends.
    """

    low: float
    high: float


def resample(
    statistics: Sequence[np.ndarray], score: Score, *, seed: int, resamples: int = RESAMPLES
) -> np.ndarray:
    """Return scores of examples drawn with replacement, the same ones for every model [M R].

    Args:
        statistics: of each model, what each example adds to its score [n k].
        score: of sums.
        seed: of the draws.
        resamples: R.
    """
    n, rng = len(statistics[0]), np.random.default_rng(seed)
    found: list[list[np.ndarray]] = [[] for _ in statistics]
    block = max(1, _BLOCK // n)
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        times = rng.multinomial(n, np.full(n, 1 / n), size=size).astype(np.float64)
        for into, one in zip(found, statistics, strict=True):
            into.append(score(times @ one))
    return np.array([np.concatenate(parts) for parts in found])


def interval(values: np.ndarray, examples: int, confidence: float) -> Interval:
    """Return the expanded percentile interval of resampled figures.

    Percentiles as they are hold too seldom where examples are few: resamples spread by
    sqrt((n - 1) / n) too little, and normally rather than as Student's t.

    Args:
        values: the figures [R].
        examples: n, at least 2.
        confidence: how often it is to hold.

    Source: Hesterberg 2015, What Teachers Should Know About the Bootstrap, section 5.3
        (arXiv:1411.5279).
    """
    tail = (1 - confidence) / 2
    wide = np.sqrt(examples / (examples - 1)) * -stdtrit(examples - 1, tail)
    outer = float(ndtr(-wide))
    low, high = np.quantile(values, [outer, 1 - outer])
    return Interval(float(low), float(high))
