"""Figures of one layer's gradients: how large, and whether queries and keys still learn.

Shapes: N query heads, K key heads, H features of a head, D model dim; weights are [out, in].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class GradientFigures:
    """Norms of one layer's gradients.

    Attributes:
        whole: of all the layer's weights together.
        query: of each query head's weights [N].
        key, value: of each key head's weights [K].
        query_to_value: the norm of all queries' weights over that of all values'.
        key_to_value: the same of the keys'.
    """

    whole: float
    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    query_to_value: float
    key_to_value: float


def gradient_figures(
    gradients: Mapping[str, np.ndarray], heads: int, key_heads: int
) -> GradientFigures:
    """Measure one layer's gradients.

    Args:
        gradients: of its weights by short name, `q_proj` and so on, each of a matrix [out, in] or
            a vector.
        heads: N.
        key_heads: K.

    Source: Noci et al. 2022 (arXiv 2206.03126): of tokens that are all alike, queries and keys
        have no gradient left, values do.
    """
    whole = np.sqrt(sum(_norm(one) ** 2 for one in gradients.values()))
    query, key, value = (
        _by_head(gradients.get(name), count)
        for name, count in (("q_proj", heads), ("k_proj", key_heads), ("v_proj", key_heads))
    )
    of_values = _together(value)
    return GradientFigures(
        whole=float(whole),
        query=query,
        key=key,
        value=value,
        query_to_value=_ratio(_together(query), of_values),
        key_to_value=_ratio(_together(key), of_values),
    )


def over_median(layers: Sequence[GradientFigures]) -> list[dict[str, float]]:
    """Return of each layer the norms of all weights and of the values', over the median layer's.

    The median is that of the finite norms; one that is not finite has no ratio.
    """
    found: list[dict[str, float]] = [{} for _ in layers]
    for part, norms in {
        "all weights": [one.whole for one in layers],
        "values' weights": [_together(one.value) for one in layers],
    }.items():
        finite = [norm for norm in norms if np.isfinite(norm)]
        median = max(float(np.median(finite)), np.finfo(np.float64).tiny) if finite else 1.0
        for one, norm in zip(found, norms, strict=True):
            if np.isfinite(norm):
                one[part] = norm / median
    return [one or {"all weights": 1.0} for one in found]


def _norm(array: np.ndarray) -> float:
    return float(np.linalg.norm(array.astype(np.float64).ravel()))


def _by_head(gradient: np.ndarray | None, heads: int) -> np.ndarray:
    if gradient is None:
        return np.full(heads, np.nan)
    return np.array([_norm(part) for part in np.split(gradient, heads, axis=0)])


def _together(norms: np.ndarray) -> float:
    return float(np.sqrt((norms**2).sum()))


def _ratio(one: float, other: float) -> float:
    return one / other if other else float("nan") if np.isnan(other) or not one else float("inf")
