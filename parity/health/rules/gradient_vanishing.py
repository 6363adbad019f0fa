"""A layer whose gradients are far smaller than others'."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from parity.health.figures import ModelFigures
from parity.health.rule import HealthFinding, HealthRule

LIMIT = 1e-3

RULE = HealthRule(
    id="gradient-vanishing",
    rank=10,
    severity="warning",
    title="a layer's gradients are far smaller than others'",
    checks="The norm of the gradients of all of a layer's weights over the median layer's: below "
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
    norms = np.array([one.whole for one in model.gradients or ()])
    if not norms.size:
        return
    median = float(np.median(norms))
    for layer, norm in enumerate(norms):
        if norm < LIMIT * median:
            yield RULE.finding(
                f"layer {layer}: gradients are {norm / median:.2g} times the median layer's",
                value=norm / median,
                threshold=LIMIT,
                layer=layer,
            )
