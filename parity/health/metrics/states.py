"""Figures of one layer's token states: whether they still differ, how large, how much is added.

Shapes: T tokens, D features; of values K heads of H features. Pads are left out by the caller.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class StateFigures:
    """Figures of one layer's states.

    Attributes:
        residual: how far the states after the layer are from one vector, relative: 0 all alike.
        cosine: mean cosine of two tokens' states, 1 all of one direction.
        value_residual: the same distance for the values of each key head [K].
        added: how large what the layer adds is beside what it is given; the median token's.
        growth: how large the states after the layer are beside those before; the median token's.
        largest: the largest magnitude in the states after the layer.
        ratio: that over the median magnitude.
        largest_token, largest_feature: where it stands.
    """

    residual: float
    cosine: float
    value_residual: np.ndarray
    added: float
    growth: float
    largest: float
    ratio: float
    largest_token: int
    largest_feature: int


def state_figures(before: np.ndarray, after: np.ndarray, values: np.ndarray | None) -> StateFigures:
    """Measure the states of one row's real tokens.

    Args:
        before: what the layer is given [T, D].
        after: what it hands on [T, D].
        values: its values [T, K, H], None where they are not shown.
    """
    before, after = before.astype(np.float64), after.astype(np.float64)
    sizes = np.maximum(np.linalg.norm(before, axis=1), np.finfo(np.float64).tiny)
    magnitudes = np.abs(after)
    at = np.unravel_index(int(magnitudes.argmax()), magnitudes.shape)
    median = float(np.median(magnitudes))
    of_values = np.zeros(0)
    if values is not None:
        heads = values.astype(np.float64).transpose(1, 0, 2)
        of_values = np.array([rank_residual(head) for head in heads])
    return StateFigures(
        residual=rank_residual(after),
        cosine=mean_cosine(after),
        value_residual=of_values,
        added=float(np.median(np.linalg.norm(after - before, axis=1) / sizes)),
        growth=float(np.median(np.linalg.norm(after, axis=1) / sizes)),
        largest=float(magnitudes[at]),
        ratio=float(magnitudes[at]) / median if median else np.inf,
        largest_token=int(at[0]),
        largest_feature=int(at[1]),
    )


def rank_residual(states: np.ndarray) -> float:
    """Return how far states [T, D] are from all being one vector: 0 they are, 1 nothing in common.

    The one vector is their mean, and size the geometric mean of the largest column sum and the
    largest row sum. A single token is no crowd: NaN.

    Source: Dong, Cordonnier and Loukas 2021 (arXiv 2103.03404), relative as in their figure 2.
    """
    if len(states) < 2:
        return float("nan")
    size = composite_norm(states)
    return composite_norm(states - states.mean(axis=0)) / size if size else 0.0


def composite_norm(matrix: np.ndarray) -> float:
    """Return the root of the product of the operator norms of l1 and l-infinity."""
    size = np.abs(matrix)
    return float(np.sqrt(size.sum(axis=0).max() * size.sum(axis=1).max()))


def mean_cosine(states: np.ndarray) -> float:
    """Return the mean cosine of all pairs of two different tokens' states [T, D].

    Source: Noci et al. 2022 (arXiv 2206.03126).
    """
    count = len(states)
    if count < 2:
        return float("nan")
    norms = np.linalg.norm(states, axis=1, keepdims=True)
    units = states / np.where(norms > 0, norms, 1.0)
    together = float((units.sum(axis=0) ** 2).sum()) - float((norms > 0).sum())
    return together / (count * (count - 1))
