"""A layer after which states are far larger."""

from __future__ import annotations

from collections.abc import Iterator

from parity.health.figures import ModelFigures
from parity.health.rule import HealthFinding, HealthRule

# SmolLM2: 14.5 in layer 0, whose input is an embedding of any size, 1.5 in others; random 1.4.
LIMIT, FIRST_LIMIT = 10.0, 1000.0

RULE = HealthRule(
    id="residual-exploding",
    rank=8,
    severity="warning",
    title="a layer makes states far larger",
    checks="The norm of a token's state after a layer over that before; the median token's: above "
    "10, in the first layer, which is given an embedding of any size, above 1000.",
    why="What a layer adds drowns what all layers before it have said, and later layers add "
    "nothing that counts. In float16 states soon end at infinity.",
    not_this="A few tokens of huge size are massive activations, which trained models have: the "
    "median token does not see them.",
    remedy="Check the gain of the residual branch and the scale of o_proj and down_proj of this "
    "layer, or which of its tensors was scaled twice in a conversion.",
    source="De and Smith 2020 (arXiv 2002.10444) for gains of residual branches.",
    basis="heuristic",
)


def find(model: ModelFigures) -> Iterator[HealthFinding]:
    """Yield such layers."""
    for layer, one in enumerate(model.layers):
        limit = LIMIT if layer else FIRST_LIMIT
        if one.states is not None and one.states.growth > limit:
            yield RULE.finding(
                f"layer {layer}: states are {one.states.growth:.3g} times as large after it",
                value=one.states.growth,
                threshold=limit,
                layer=layer,
            )
