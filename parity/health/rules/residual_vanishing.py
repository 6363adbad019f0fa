"""A layer that adds nothing, or after which nothing is left."""

from __future__ import annotations

from collections.abc import Iterator

from parity.health.figures import ModelFigures
from parity.health.rule import HealthFinding, HealthRule

LEAST_ADDED, LEAST_GROWTH = 1e-3, 0.1
# After such a growth no layer adds anything that counts: said there, not of all that follow.
DROWNED = 10.0

RULE = HealthRule(
    id="residual-vanishing",
    rank=9,
    severity="warning",
    title="a layer adds nothing, or leaves nothing",
    checks="The norm of what a layer adds to a token's state over that of the state: below 0.001; "
    "and the norm of the state after it over that before: below 0.1. The median token's. SmolLM2 "
    "adds 0.22 and more, and lets states grow.",
    why="A layer whose residual gain has vanished is not there: it costs its time and computes "
    "nothing. Where the state itself shrinks, what earlier layers said is lost.",
    not_this="After a layer that explodes all others add nothing that counts; they are not named. "
    "A layer that was pruned or initialised to zero on purpose is one of these, too.",
    remedy="Check the gain of the residual branch, and o_proj and down_proj of this layer: a "
    "tensor of zeros, or one scaled twice.",
    source="De and Smith 2020 (arXiv 2002.10444) for gains of residual branches.",
    basis="heuristic",
)


def find(model: ModelFigures) -> Iterator[HealthFinding]:
    """Yield such layers."""
    drowned = False
    for layer, one in enumerate(model.layers):
        if one.states is None:
            continue
        if one.states.added < LEAST_ADDED and not drowned:
            yield RULE.finding(
                f"layer {layer}: adds {one.states.added:.2g} of what it is given",
                value=one.states.added,
                threshold=LEAST_ADDED,
                layer=layer,
            )
        elif one.states.growth < LEAST_GROWTH:
            yield RULE.finding(
                f"layer {layer}: states are {one.states.growth:.2g} times as large after it",
                value=one.states.growth,
                threshold=LEAST_GROWTH,
                layer=layer,
            )
        drowned |= layer > 0 and one.states.growth > DROWNED
