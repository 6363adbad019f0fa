"""A layer whose gradients are far smaller than others'."""

from __future__ import annotations

from collections.abc import Iterator

from parity.health.figures import ModelFigures
from parity.health.metrics.gradients import over_median
from parity.health.rule import HealthFinding, HealthRule

LIMIT = 1e-3

RULE = HealthRule(
    id="gradient-vanishing",
    rank=11,
    severity="warning",
    title="a layer's gradients are far smaller than others'",
    checks="The norm of the gradients of all of a layer's weights, and of its values' weights "
    "alone, over the median layer's: below "
    "0.001. SmolLM2's are between 0.3 and 2.3.",
    why="The layer does not learn: nothing that it changes reaches the loss, or it is far from it "
    "behind a layer that drowns it.",
    not_this="A layer that is frozen on purpose has gradients all the same.",
    remedy="Look for a residual gain that vanishes here, or explodes in a later layer.",
    source="Noci et al. 2022 (arXiv 2206.03126) for comparing layers.",
    basis="heuristic",
)


def find(model: ModelFigures) -> Iterator[HealthFinding]:
    """Yield such layers."""
    for layer, ratios in enumerate(over_median(model.gradients or ())):
        part = min(ratios, key=ratios.__getitem__)
        if ratios[part] < LIMIT:
            yield RULE.finding(
                f"layer {layer}: gradients of {part} are {ratios[part]:.2g} times the median "
                "layer's",
                value=ratios[part],
                threshold=LIMIT,
                layer=layer,
            )
