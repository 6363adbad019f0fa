"""A few huge numbers in the states."""

from __future__ import annotations

from collections.abc import Iterator

from parity.health.figures import ModelFigures
from parity.health.rule import HealthFinding, HealthRule, layers_in_words

MAGNITUDE, RATIO = 100.0, 1000.0

RULE = HealthRule(
    id="massive-activations",
    rank=15,
    severity="information",
    title="a few features are huge",
    checks="A magnitude in the states after a layer above 100 that is at least 1000 times the "
    "median one.",
    why="Trained models have a few, at fixed features of the first token or a delimiter: they act "
    "as biases and make sinks. They are what is lost first in float16 and in int8.",
    not_this="A layer that makes all tokens large is residual-exploding.",
    remedy="Nothing. Quantise these features by themselves, and keep states in bfloat16 or wider.",
    source="Sun et al. 2024 (arXiv 2402.17762).",
    basis="paper",
)


def find(model: ModelFigures) -> Iterator[HealthFinding]:
    """Yield it once for the model."""
    found = {
        layer: one
        for layer, one in enumerate(model.layers)
        if one.states is not None and one.states.largest > MAGNITUDE and one.states.ratio >= RATIO
    }
    if not found:
        return
    layer = max(found, key=lambda n: found[n].states.largest)  # type: ignore[union-attr]
    states = found[layer].states
    assert states is not None
    place = model.token(found[layer].state_row, states.largest_token)
    yield RULE.finding(
        f"{layers_in_words(found)}: up to {states.largest:.4g} in layer {layer}, "
        f"{states.ratio:.3g} times the median, token {place}, feature {states.largest_feature}",
        value=states.ratio,
        threshold=RATIO,
    )
