"""Queries and keys that no longer learn."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from parity.health.figures import ModelFigures
from parity.health.rule import HealthFinding, HealthRule

# SmolLM2: 0.02 and more.
LIMIT = 1e-3

RULE = HealthRule(
    id="query-key-starved",
    rank=12,
    severity="warning",
    title="queries and keys have no gradient left",
    checks="The norm of the gradient of a layer's query or key weights over that of its value "
    "weights: below 0.001.",
    why="Tokens that are alike leave nothing to choose from, and rows that are peaked leave "
    "nothing to shift: in both the softmax passes no gradient, and what attends to what stays as "
    "it is.",
    not_this="Rank collapse and entropy collapse are what it may come from; they are findings of "
    "their own.",
    remedy="See which of the two this layer has, or the layers before it.",
    source="Noci et al. 2022 (arXiv 2206.03126).",
    basis="heuristic",
)


def find(model: ModelFigures) -> Iterator[HealthFinding]:
    """Yield such layers."""
    for layer, one in enumerate(model.gradients or ()):
        ratios = np.array([one.query_to_value, one.key_to_value])
        if (ratios < LIMIT).any():
            yield RULE.finding(
                f"layer {layer}: gradients of queries are {ratios[0]:.2g}, of keys {ratios[1]:.2g} "
                "of the values'",
                value=ratios.min(),
                threshold=LIMIT,
                layer=layer,
            )
