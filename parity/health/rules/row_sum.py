"""Rows of weights that do not add up to 1."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from parity.health.figures import ModelFigures
from parity.health.rule import HealthFinding, HealthRule, heads_in_words

# Of weights rounded to the dtype: a row of bfloat16 weights is off by up to half a unit of each.
LIMITS = {"f64": 1e-5, "f32": 1e-5, "f16": 5e-3, "bf16": 5e-3}

RULE = HealthRule(
    id="row-sum",
    rank=2,
    severity="error",
    title="rows of attention weights do not add up to 1",
    checks="How far the sum of a query's weights is from 1: more than 1e-5 in float32 and float64, "
    "more than 5e-3 in bfloat16 and float16.",
    why="Attention is a weighted mean of values; weights that do not add up to 1 scale what a head "
    "adds, each query by another factor. Something between softmax and values changes them: "
    "dropout left on, a mask multiplied after the softmax, a softmax in too narrow a dtype.",
    not_this="A query that sees nothing, such as a pad's, is left out.",
    remedy="Turn dropout off, add the mask before the softmax, and take the softmax in float32.",
    source="Softmax's own meaning.",
    basis="heuristic",
)


def find(model: ModelFigures) -> Iterator[HealthFinding]:
    """Yield the layers with such rows."""
    limit = LIMITS[model.dtype]
    for layer, one in enumerate(model.layers):
        if one.heads is None:
            continue
        heads = np.flatnonzero(one.heads.row_sum > limit)
        if not len(heads):
            continue
        worst = heads[one.heads.row_sum[heads].argmax()]
        row = int(one.row_sum_row[worst])
        query = model.token(row, int(one.heads.row_sum_at[worst]))
        yield RULE.finding(
            f"layer {layer}, {heads_in_words(heads)}: weights of query {query} in row {row} are "
            f"off by {one.heads.row_sum[worst]:.3g} from a sum of 1",
            value=one.heads.row_sum[worst],
            threshold=limit,
            layer=layer,
            heads=heads,
        )
