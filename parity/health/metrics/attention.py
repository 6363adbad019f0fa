"""Figures of one layer's attention weights, a head each.

Shapes: N heads, T queries, S keys. Keys that a query may see are given, not taken from the weights;
a query that sees none, such as a pad's, is left out of everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Queries of which the shape of a map is taken: what a causal model makes of a text's beginning does
# not depend on its end, and the singular values of 2,048 rows take a second and more a head.
MOST_SINGULAR = 512
# Queries, at even distances, over which heads are compared with each other.
MOST_COMPARED = 128
# Of a map's squared singular values.
LAZY_SHARE = 0.9
# Tokens at which Gu et al. measure sinks.
SINK_TOKENS = 64
# A row is peaked when one key has all of its weight but this.
PEAK_REST = 1e-2


@dataclass(frozen=True)
class HeadFigures:
    """Figures of one layer's heads, each [N]; what cannot be said is NaN.

    Attributes:
        entropy: mean over queries of H / ln n, of n >= 2 visible keys: 0 peaked, 1 uniform.
        peaked: share of those queries of which one key has all the weight but a hundredth.
        one_distance: share of them whose heaviest key stands at one and the same distance.
        sink: weight on the first key, mean over the queries that see it, of the first 64 tokens.
        column: the largest mean weight that a key has from the queries that see it, of keys that
            at least half of all queries see.
        column_at: which key that is.
        column_first: 1 where it is the first key that is seen at all, else 0.
        lazy_k: how many singular values have nine tenths of the map's squared ones.
        reach: mean distance of what is attended to, in tokens.
        leakage: weight on keys that are hidden, summed.
        leaking: how many such cells there are.
        leak_query, leak_key: the largest of them, -1 where there is none.
        row_sum: the largest distance of a row's sum from 1.
        row_sum_at: the query of that.
        nearest: Jensen-Shannon distance to the most similar head, 0 equal, 1 disjoint.
        nearest_head: which head that is, -1 without another.
        max_logit: the largest scaled score of a visible key; NaN where scores are not shown.
    """

    entropy: np.ndarray
    peaked: np.ndarray
    one_distance: np.ndarray
    sink: np.ndarray
    column: np.ndarray
    column_at: np.ndarray
    column_first: np.ndarray
    lazy_k: np.ndarray
    reach: np.ndarray
    leakage: np.ndarray
    leaking: np.ndarray
    leak_query: np.ndarray
    leak_key: np.ndarray
    row_sum: np.ndarray
    row_sum_at: np.ndarray
    nearest: np.ndarray
    nearest_head: np.ndarray
    max_logit: np.ndarray


def head_figures(
    weights: np.ndarray, visible: np.ndarray, scores: np.ndarray | None = None
) -> HeadFigures:
    """Measure the heads of one layer on one row of a batch.

    Args:
        weights: attention weights after the softmax [N, T, S].
        visible: which keys each query may see [T, S].
        scores: scaled scores before the mask [N, T, S], None where they are not shown.

    Source: entropy: Zhai et al. 2023 (arXiv 2303.06296); sink: Gu et al. 2024 (2410.10781); lazy k:
        Sanyal et al. 2024 (2404.08634); distance of heads: Clark et al. 2019 (1906.04341).
    """
    live = visible.any(axis=1)
    seen, queries = visible[live], np.flatnonzero(live)
    maps = [_wide(head[live]) for head in weights]
    rows = [_head(one, seen, queries) for one in maps]
    nearest, nearest_head = head_distances(maps, seen)
    logits = np.full(len(weights), np.nan)
    if scores is not None and seen.any():
        logits = np.array([_wide(head[live]).max(where=seen, initial=-np.inf) for head in scores])
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return HeadFigures(**columns, nearest=nearest, nearest_head=nearest_head, max_logit=logits)


def _wide(array: np.ndarray) -> np.ndarray:
    """Return an array in at least float32; sums over it are taken in float64."""
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)


def _head(a: np.ndarray, seen: np.ndarray, queries: np.ndarray) -> dict[str, float]:
    """Measure one head's live rows, [t, S]."""
    if not len(a):
        return dict.fromkeys(_FIGURES, np.nan) | dict.fromkeys(_PLACES, -1)
    shown = np.where(seen, a, a.dtype.type(0))
    sums = shown.sum(axis=1, dtype=np.float64)
    mass = column_mass(shown, seen)
    often = seen.sum(axis=0) * 2 >= len(a)
    column = int(np.where(often, mass, -1.0).argmax())
    first = int(seen.any(axis=0).argmax())
    early = queries < first + SINK_TOKENS
    leaks = _leaks(a, seen, queries)
    off = np.abs(sums + leaks.pop("by_row") - 1.0)
    keys = shown @ np.arange(a.shape[1], dtype=a.dtype)
    return leaks | {
        **_peakedness(shown, seen.sum(axis=1), queries),
        "sink": float(column_mass(shown[early], seen[early])[first]) if early.any() else np.nan,
        "column": float(mass[column]) if often.any() else np.nan,
        "column_at": column,
        "column_first": float(column == first),
        "lazy_k": lazy_k(a[:MOST_SINGULAR]),
        "reach": float((queries * sums - keys).mean()),
        "row_sum": float(off.max()),
        "row_sum_at": int(queries[off.argmax()]),
    }


_FIGURES = (
    *("entropy", "peaked", "one_distance", "sink", "column", "column_first"),
    *("lazy_k", "reach", "leakage", "leaking", "row_sum"),
)
_PLACES = ("column_at", "leak_query", "leak_key", "row_sum_at")


def row_entropies(weights: np.ndarray) -> np.ndarray:
    """Return the entropy of each row [..., T, S] in nats; a weight of 0 adds nothing."""
    logs = np.log(weights, out=np.zeros_like(weights), where=weights > 0)
    logs *= weights
    return -logs.sum(axis=-1, dtype=np.float64)


def _peakedness(weights: np.ndarray, counts: np.ndarray, queries: np.ndarray) -> dict[str, float]:
    """Say how peaked rows with a choice are, and whether their peaks stand at one distance."""
    choice = counts >= 2
    if not choice.any():
        return dict.fromkeys(("entropy", "peaked", "one_distance"), np.nan)
    rows = weights[choice]
    entropies = row_entropies(rows) / np.log(counts[choice])
    distances = queries[choice] - rows.argmax(axis=1)
    often = np.unique(distances, return_counts=True)[1].max()
    return {
        "entropy": float(entropies.mean()),
        "peaked": float((rows.max(axis=1) > 1 - PEAK_REST).mean()),
        "one_distance": float(often / len(rows)),
    }


def _leaks(a: np.ndarray, seen: np.ndarray, queries: np.ndarray) -> dict[str, Any]:
    """Say what weight stands on hidden keys, in all, where most, and of each row signed."""
    hidden = np.where(seen, a.dtype.type(0), a)
    cells = int(np.count_nonzero(hidden))
    if not cells:
        nothing = {"leakage": 0.0, "leaking": 0, "leak_query": -1, "leak_key": -1}
        return {**nothing, "by_row": 0.0}
    size = np.abs(hidden)
    query, key = np.unravel_index(int(size.argmax()), size.shape)
    return {
        "leakage": float(size.sum(dtype=np.float64)),
        "leaking": cells,
        "leak_query": int(queries[query]),
        "leak_key": int(key),
        "by_row": hidden.sum(axis=1, dtype=np.float64),
    }


def column_mass(weights: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Return the mean weight that each key has from the queries that see it [S]; 0 unseen."""
    return weights.sum(axis=0, dtype=np.float64) / np.maximum(seen.sum(axis=0), 1)


def lazy_k(weights: np.ndarray) -> int:
    """Return the smallest number of singular values that has nine tenths of their squares."""
    a = weights if weights.shape[0] <= weights.shape[1] else weights.T
    squares = np.linalg.eigvalsh(a @ a.T)[::-1].clip(min=0.0).astype(np.float64)
    # Rounding must not ask for one more: of equal values exactly nine tenths may be meant.
    enough = LAZY_SHARE * squares.sum() * (1 - 1e-6)
    return int(np.searchsorted(np.cumsum(squares), enough)) + 1


def head_distances(heads: Sequence[np.ndarray], seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each head's distance to its nearest, and which that is, both [N].

    The distance is the square root of the mean Jensen-Shannon divergence, in bits, over queries
    with a choice of keys.

    Args:
        heads: of each the live rows of its map [t, S].
        seen: visible keys of these rows [t, S].
    """
    count = len(heads)
    choice = np.flatnonzero(seen.sum(axis=1) >= 2)
    if count < 2 or not len(choice):
        return np.full(count, np.nan), np.full(count, -1)
    at = choice[np.linspace(0, len(choice) - 1, min(len(choice), MOST_COMPARED)).astype(int)]
    maps = [np.where(seen[at], head[at], head.dtype.type(0)) for head in heads]
    entropies = [row_entropies(one) for one in maps]
    distances = np.full((count, count), np.inf)
    for i in range(count):
        for j in range(i):
            mixed = row_entropies((maps[i] + maps[j]) / 2)
            divergence = (mixed - (entropies[i] + entropies[j]) / 2).mean() / np.log(2)
            distances[i, j] = distances[j, i] = np.sqrt(max(divergence, 0.0))
    return distances.min(axis=1), distances.argmin(axis=1)


class Rollout:
    """Where what reaches a token came from, through all layers so far, residuals counted.

    Source: Abnar and Zuidema 2020 (arXiv 2005.00928): the mean of the heads and the identity in
        equal parts, multiplied from layer to layer.
    """

    def __init__(self) -> None:
        self._through: np.ndarray | None = None

    def add(self, weights: np.ndarray, visible: np.ndarray) -> float:
        """Take one more layer's weights [N, T, S = T]; return the mean distance in tokens."""
        step = weights.mean(axis=0, dtype=np.float32)
        step *= visible * np.float32(0.5)
        at = np.arange(len(step))
        step[at, at] += np.float32(0.5)
        self._through = step if self._through is None else step @ self._through
        live = visible.any(axis=1)
        if not live.any():
            return float("nan")
        through = self._through[live]
        keys = through @ np.arange(len(step), dtype=np.float32)
        return float((np.flatnonzero(live) * through.sum(axis=1) - keys).mean())
