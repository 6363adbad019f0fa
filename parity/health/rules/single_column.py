"""A head on one key that is not the first."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from parity.health.figures import ModelFigures
from parity.health.rule import HealthFinding, HealthRule, heads_in_words

SHARE = 0.9
# With scores above this it is a softmax that is saturated, wherever its peaks are.
SATURATED = 100.0

RULE = HealthRule(
    id="single-column",
    rank=6,
    severity="warning",
    title="a head looks at one key, which is not the first",
    checks="The mean weight that one key has from all queries that see it: above 0.9, of another "
    "key than the first. Keys that fewer than half of the queries see are left out.",
    why="A head that looks at one place whatever it is asked adds the same to every token. On the "
    "first token that is a sink, which trained models make for heads that have nothing to add; "
    "elsewhere it is rather a bias or a cache slot that outweighs all scores.",
    not_this="On the first key it is a sink, and said as information. With scores above 100 it is "
    "entropy-collapse.",
    remedy="Look at the head's map (--html) and at what stands there. A special token in the "
    "middle of a text can be a sink, too.",
    source="Gu et al. 2024 (arXiv 2410.10781) for the figure.",
    basis="heuristic",
)


def find(model: ModelFigures) -> Iterator[HealthFinding]:
    """Yield the layers with such heads."""
    for layer, one in enumerate(model.layers):
        if one.heads is None:
            continue
        h = one.heads
        saturated = h.max_logit > SATURATED
        heads = np.flatnonzero((h.column > SHARE) & (h.column_first < 0.5) & ~saturated)
        if not len(heads):
            continue
        worst = heads[h.column[heads].argmax()]
        row = int(one.column_row[worst])
        yield RULE.finding(
            f"layer {layer}, {heads_in_words(heads)}: {h.column[worst]:.0%} of all weight on one "
            f"key, in row {row} on key {model.token(row, int(h.column_at[worst]))}",
            value=h.column[worst],
            threshold=SHARE,
            layer=layer,
            heads=heads,
        )
