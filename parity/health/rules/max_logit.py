"""Scores that are large."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from parity.health.figures import ModelFigures
from parity.health.rule import HealthFinding, HealthRule, heads_in_words

LIMIT = 100.0

RULE = HealthRule(
    id="max-logit",
    rank=7,
    severity="warning",
    title="attention scores are large",
    checks="The largest scaled score of a visible key, before the softmax: above 100.",
    why="Scores that grow go before loss spikes; past some hundred a softmax in bfloat16 can no "
    "longer tell neighbours apart.",
    not_this="Peaked rows need no large scores, and large scores that are large together make no "
    "peaked rows.",
    remedy="Clip query and key weights by head (QK-clip), or normalise queries and keys.",
    source="Kimi K2 2025 (arXiv 2507.20534), tau = 100; ViT-22B 2023 (2302.05442).",
    basis="paper",
)


def find(model: ModelFigures) -> Iterator[HealthFinding]:
    """Yield the layers with such heads."""
    for layer, one in enumerate(model.layers):
        if one.heads is None:
            continue
        heads = np.flatnonzero(one.heads.max_logit > LIMIT)
        if len(heads):
            largest = one.heads.max_logit[heads].max()
            yield RULE.finding(
                f"layer {layer}, {heads_in_words(heads)}: scores up to {largest:.4g}",
                value=largest,
                threshold=LIMIT,
                layer=layer,
                heads=heads,
            )
