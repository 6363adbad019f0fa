"""A layer whose gradients are far larger than others'."""

from __future__ import annotations

from collections.abc import Iterator

from parity.health.figures import ModelFigures
from parity.health.metrics.gradients import over_median
from parity.health.rule import HealthFinding, HealthRule

LIMIT = 1e3

RULE = HealthRule(
    id="gradient-exploding",
    rank=10,
    severity="warning",
    title="a layer's gradients are far larger than others'",
    checks="The norm of the gradients of all of a layer's weights, and of its values' weights "
    "alone, over the median layer's: above "
    "1000. SmolLM2's are between 0.3 and 2.3.",
    why="With one learning rate for all layers this one is thrown about while others stand still; "
    "clipping by the norm of all gradients then stops the others.",
    not_this="Gradients of one text say nothing of a whole training.",
    remedy="Look for a residual gain that explodes, and for scales of weights and norms there.",
    source="Noci et al. 2022 (arXiv 2206.03126) for comparing layers.",
    basis="heuristic",
)


def find(model: ModelFigures) -> Iterator[HealthFinding]:
    """Yield such layers."""
    for layer, ratios in enumerate(over_median(model.gradients or ())):
        part = max(ratios, key=ratios.__getitem__)
        if ratios[part] > LIMIT:
            yield RULE.finding(
                f"layer {layer}: gradients of {part} are {ratios[part]:.3g} times the median "
                "layer's",
                value=ratios[part],
                threshold=LIMIT,
                layer=layer,
            )
