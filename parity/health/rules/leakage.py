"""Weight on keys that are hidden."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from parity.health.figures import ModelFigures
from parity.health.rule import HealthFinding, HealthRule, heads_in_words

RULE = HealthRule(
    id="leakage",
    rank=1,
    severity="error",
    title="weight on hidden keys",
    checks="The attention weight that a query gives to keys it must not see, summed over all "
    "queries. It is exactly 0: a mask that works leaves nothing.",
    why="A token that sees what comes after it, or another document, or a pad, is trained and "
    "measured on an answer that it will not have in use. The text stays fluent.",
    not_this="A weight that is small but visible is none. What is hidden is what the intended mask "
    "hides, which --mask says; by default a key that comes later, or is a pad.",
    remedy="Look at the mask beside what was observed (--html), check the mask itself by parity "
    "lint, and the attention that takes it by parity probe.",
    source="A mask's own meaning.",
    basis="definition",
)


def find(model: ModelFigures) -> Iterator[HealthFinding]:
    """Yield the layers that leak."""
    for layer, one in enumerate(model.layers):
        if one.heads is None:
            continue
        heads = np.flatnonzero(one.heads.leakage > 0)
        if not len(heads):
            continue
        worst = heads[one.heads.leakage[heads].argmax()]
        row = int(one.leak_row[worst])
        query, key = int(one.heads.leak_query[worst]), int(one.heads.leak_key[worst])
        yield RULE.finding(
            f"layer {layer}, {heads_in_words(heads)}: weight {one.heads.leakage[worst]:.3g} on "
            f"{one.heads.leaking[worst]:.0f} hidden cells, most in row {row} where query "
            f"{model.token(row, query)} sees key {model.token(row, key)}",
            value=one.heads.leakage[worst],
            threshold=0.0,
            layer=layer,
            heads=heads,
        )
