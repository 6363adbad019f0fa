"""Rows that are peaked, each on another key."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from parity.health.figures import ModelFigures
from parity.health.rule import HealthFinding, HealthRule, heads_in_words

# Share of queries with 0.99 of their weight on one key. SmolLM2's heads that are no sinks: 0.23.
PEAKED = 0.5
# Above these shares the peaks are one column or one distance, which heads of healthy models have.
ONE_PLACE = 0.5
LOGITS = 100.0

RULE = HealthRule(
    id="entropy-collapse",
    rank=4,
    severity="error",
    title="attention is peaked on single keys",
    checks="The share of queries of which one key has 0.99 of the weight: more than half, with "
    "peaks neither on one column nor at one distance - or wherever they are, with scores above "
    "100.",
    why="The softmax is saturated: it passes no gradient, small changes of scores flip what a "
    "token attends to, and training tends to become unstable or to stop. It comes with query and "
    "key weights that have grown.",
    not_this="Rank collapse is the opposite: there tokens are alike and attention cannot "
    "tell them apart. A head on the first token (sink) or on the token before is peaked and "
    "healthy.",
    remedy="Normalise queries and keys (QK-norm), clip or decay their weights, lower the learning "
    "rate. Compare with an earlier checkpoint by --baseline: the paper tells collapse by a sharp "
    "fall of the entropy and names no cutoff.",
    source="Zhai et al. 2023 (arXiv 2303.06296) for the entropy; Kimi K2 2025 (2507.20534) for the "
    "scores.",
    basis="heuristic",
)


def find(model: ModelFigures) -> Iterator[HealthFinding]:
    """Yield the layers with such heads."""
    for layer, one in enumerate(model.layers):
        if one.heads is None:
            continue
        h = one.heads
        spread = (h.column < ONE_PLACE) & (h.one_distance < ONE_PLACE)
        heads = np.flatnonzero((h.peaked > PEAKED) & (spread | (h.max_logit > LOGITS)))
        if not len(heads):
            continue
        worst = heads[h.peaked[heads].argmax()]
        logits = h.max_logit[heads].max()
        scores = "" if np.isnan(logits) else f", scores up to {logits:.3g}"
        yield RULE.finding(
            f"layer {layer}, {heads_in_words(heads)}: {h.peaked[worst]:.0%} of queries have all "
            f"their weight on one key, entropy {h.entropy[worst]:.2g} of 1{scores}",
            value=h.peaked[worst],
            threshold=PEAKED,
            layer=layer,
            heads=heads,
        )
