"""Heads that do the same."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from parity.health.figures import ModelFigures
from parity.health.rule import HealthFinding, HealthRule, heads_in_words

# SmolLM2's nearest heads that are no sinks: 0.15.
LIMIT, SINK = 0.05, 0.9

RULE = HealthRule(
    id="alike-heads",
    rank=17,
    severity="information",
    title="heads attend to the same",
    checks="The Jensen-Shannon distance of a head's rows to those of the most similar head of its "
    "layer, 0 equal and 1 disjoint, over at most 128 queries: below 0.05. Heads on a single column "
    "are left out.",
    why="Heads with one map are one head with more values: some can be pruned. Where all heads of "
    "a layer are alike a wrong map of heads, or queries copied over, is likely.",
    not_this="Heads of one group share keys, not queries; they are not alike by that.",
    remedy="If it is a whole layer, check how query heads are mapped to key heads: parity run.",
    source="Clark et al. 2019 (arXiv 1906.04341) for the distance.",
    basis="heuristic",
)


def find(model: ModelFigures) -> Iterator[HealthFinding]:
    """Yield the layers with such heads."""
    for layer, one in enumerate(model.layers):
        if one.heads is None or model.tokens <= 8:
            continue
        h = one.heads
        heads = np.flatnonzero((h.nearest < LIMIT) & (h.column < SINK))
        if len(heads):
            yield RULE.finding(
                f"layer {layer}, {heads_in_words(heads)}: the nearest map of another head is "
                f"{h.nearest[heads].min():.2g} away",
                value=h.nearest[heads].min(),
                threshold=LIMIT,
                layer=layer,
                heads=heads,
            )
