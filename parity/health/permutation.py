"""A permutation test of many figures at once, that keeps its promise over all of them together.

Shapes: A and B texts of two groups, F figures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np

# Relabellings that are drawn where there are more than all can be tried.
DRAWS = 9999
_EXACT = 10_000


@dataclass(frozen=True)
class Significance:
    """What the test says of each figure [F].

    Attributes:
        difference: mean of the first group less that of the second.
        p: share of relabellings whose largest statistic of all figures is at least this figure's:
            corrected for their number.
        relabellings: how many were tried, the given one among them.
    """

    difference: np.ndarray
    p: np.ndarray
    relabellings: int


def least_p(first: int, second: int, *, paired: bool) -> float:
    """Return the smallest p that so many texts can give, in either direction."""
    ways = 2**first if paired else math.comb(first + second, first)
    return min(1.0, 2.0 / ways)


def compare_unpaired(first: np.ndarray, second: np.ndarray, seed: int = 0) -> Significance:
    """Compare groups of different texts [A, F] and [B, F]: labels are dealt anew.

    The statistic is the difference of means over its standard error.

    Source: Westfall and Young 1993 (maxT); Nichols and Holmes 2002 for relabelling.
    """
    both, count = np.concatenate([first, second]), len(first)
    total = len(both)
    if math.comb(total, count) <= _EXACT:
        chosen = np.zeros((math.comb(total, count), total), bool)
        for row, members in enumerate(combinations(range(total), count)):
            chosen[row, list(members)] = True
    else:
        rng = np.random.default_rng(seed)
        order = rng.permuted(np.tile(np.arange(total), (DRAWS, 1)), axis=1)
        chosen = np.concatenate([np.arange(total)[None] < count, order < count])
    weights = np.where(chosen, 1 / count, -1 / (total - count))
    moments = chosen.astype(np.float64), (~chosen).astype(np.float64)
    values = both - both.mean(0)
    squares = values**2
    variance = np.zeros((len(chosen), both.shape[1]))
    for of_group in moments:
        size = of_group.sum(1, keepdims=True)
        mean = of_group @ values / size
        spread = np.maximum(of_group @ squares / size - mean**2, 0.0)
        variance += spread / np.maximum(size - 1, 1)
    return _significance(first.mean(0) - second.mean(0), weights @ values, variance, both)


def compare_paired(first: np.ndarray, second: np.ndarray, seed: int = 0) -> Significance:
    """Compare texts that belong together in pairs, [A, F] each: members of pairs are exchanged."""
    gaps = first - second
    count = len(gaps)
    if 2**count <= _EXACT:
        signs = np.array(list(product((1.0, -1.0), repeat=count)))
    else:
        drawn = np.random.default_rng(seed).integers(0, 2, (DRAWS, count)) * 2.0 - 1
        signs = np.concatenate([np.ones((1, count)), drawn])
    means = signs @ gaps / count
    variance = np.maximum((gaps**2).mean(0) - means**2, 0.0) / max(count - 1, 1)
    return _significance(gaps.mean(0), means, variance, gaps)


def _significance(
    difference: np.ndarray, means: np.ndarray, variance: np.ndarray, values: np.ndarray
) -> Significance:
    """Put each figure's statistic beside the largest of every relabelling, the given one first."""
    # Of figures that do not vary a statistic would be rounding over rounding.
    floor = 1e-12 * np.maximum(np.abs(values).max(0), 1e-30)
    statistics = np.abs(means) / (np.sqrt(variance) + floor)
    statistics[:, np.ptp(values, axis=0) <= floor] = 0.0
    largest = statistics.max(axis=1)
    given = statistics[0]
    # Rounding must not make one of two equal relabellings the larger.
    p = (largest[:, None] >= given * (1 - 1e-9)).mean(axis=0)
    return Significance(difference, np.where(given > 0, p, 1.0), len(means))
