"""The figures of a whole model: of every layer, those of all rows of a text put together.

Shapes: R rows of text, L layers, N query heads, K key heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np

from parity.health.metrics.attention import HeadFigures
from parity.health.metrics.gradients import GradientFigures
from parity.health.metrics.layer import LayerFigures
from parity.health.metrics.states import StateFigures


@dataclass(frozen=True)
class LayerSummary:
    """One layer over all rows.

    Attributes:
        heads: means over rows; of `leakage` and `leaking` sums, of `lazy_k`, `row_sum` and
            `max_logit` the largest. Where a place belongs to a figure it is that of the row which
            has the largest.
        states: means over rows; of the largest magnitude the row's that has it.
        rollout: the mean.
        leak_row, row_sum_row, column_row: of each head [N], which row leaks most, has the row sum
            furthest off, and the largest column.
        state_row: which row has the largest state.
    """

    heads: HeadFigures | None
    states: StateFigures | None
    rollout: float
    leak_row: np.ndarray
    row_sum_row: np.ndarray
    column_row: np.ndarray
    state_row: int


@dataclass(frozen=True)
class ModelFigures:
    """What rules look at.

    Attributes:
        layers: one each.
        gradients: of each layer; None where they were not taken.
        dtype: that the model ran in: `f64`, `f32`, `bf16`.
        tokens: real tokens of the longest row.
        spectra: by weight's name, the largest singular value beside the largest that random
            numbers of the same variance have; empty where no weights were read.
        loss: mean cross-entropy of the text, nats a token; NaN where logits are not shown.
        chance: the same of a model that knows nothing.
        token: says what stands at a row's index.
    """

    layers: Sequence[LayerSummary]
    gradients: Sequence[GradientFigures] | None
    dtype: str
    tokens: int
    spectra: dict[str, float]
    loss: float
    chance: float
    token: Callable[[int, int], str]


_SUMS, _LARGEST = {"leakage", "leaking"}, {"lazy_k", "row_sum", "max_logit"}
# Of places: by which figure the row is chosen.
_PLACED = {
    "column_at": "column",
    "leak_query": "leakage",
    "leak_key": "leakage",
    "row_sum_at": "row_sum",
    "nearest_head": "nearest",
}


def summarise_layer(rows: Sequence[LayerFigures]) -> LayerSummary:
    """Put one layer's figures of all rows together."""
    heads = [row.heads for row in rows if row.heads is not None]
    states = [row.states for row in rows if row.states is not None]
    through = [row.rollout for row in rows if not np.isnan(row.rollout)]
    return LayerSummary(
        heads=_over_heads(heads) if heads else None,
        states=_over_states(states) if states else None,
        rollout=float(np.mean(through)) if through else float("nan"),
        leak_row=_largest_row([one.leakage for one in heads]),
        row_sum_row=_largest_row([one.row_sum for one in heads]),
        column_row=_largest_row([one.column for one in heads]),
        state_row=int(np.argmax([one.largest for one in states])) if states else 0,
    )


def _largest_row(rows: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """Return of each head the row with the largest figure [N], the first of equal ones."""
    if not len(rows):
        return np.zeros(0, int)
    return np.asarray(np.nan_to_num(np.asarray(rows), nan=-1.0).argmax(axis=0))


def _over_heads(rows: Sequence[HeadFigures]) -> HeadFigures:
    stacked = {f.name: np.stack([getattr(row, f.name) for row in rows]) for f in fields(rows[0])}
    found = {}
    for name, values in stacked.items():
        if name in _PLACED:
            by = stacked[_PLACED[name]]
            chosen = _largest_row(1 - by if name == "nearest_head" else by)
            found[name] = np.take_along_axis(values, chosen[None], axis=0)[0]
        else:
            found[name] = _over(name, values.astype(np.float64))
    return HeadFigures(**found)


def _over(name: str, values: np.ndarray) -> np.ndarray:
    """Put rows [R, N] together; those that have no figure are left out, NaN if none has."""
    known = ~np.isnan(values)
    if name in _LARGEST:
        largest = values.max(axis=0, where=known, initial=-np.inf)
        return np.where(known.any(axis=0), largest, np.nan)
    total = values.sum(axis=0, where=known)
    total = total if name in _SUMS else total / np.maximum(known.sum(axis=0), 1)
    return np.where(known.any(axis=0), total, np.nan)


def _over_states(rows: Sequence[StateFigures]) -> StateFigures:
    largest = max(rows, key=lambda row: row.largest)

    def mean(name: str) -> float:
        values = np.array([getattr(row, name) for row in rows], np.float64)
        return float(_over(name, values[:, None])[0])

    return StateFigures(
        residual=mean("residual"),
        cosine=mean("cosine"),
        value_residual=_over("value_residual", np.stack([row.value_residual for row in rows])),
        added=mean("added"),
        growth=mean("growth"),
        largest=largest.largest,
        ratio=largest.ratio,
        largest_token=largest.largest_token,
        largest_feature=largest.largest_feature,
    )
