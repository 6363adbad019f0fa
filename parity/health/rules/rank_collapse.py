"""Tokens that have become alike."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from parity.health.figures import ModelFigures
from parity.health.rule import HealthFinding, HealthRule, heads_in_words

# Trained models and random ones keep above 0.4 (SmolLM2: 0.46 of values, 0.51 of states).
LEAST_RESIDUAL = 0.02
# Of directions, where a few large tokens keep the residual up.
MOST_COSINE = 0.999

RULE = HealthRule(
    id="rank-collapse",
    rank=3,
    severity="error",
    title="tokens have become alike",
    checks="How far token states after a layer, and the values of each key head, are from all "
    "being one vector, relative to their size: below 0.02. Of states also the mean cosine of two "
    "tokens: above 0.999.",
    why="Where all values are one vector attention has nothing to choose from: whatever its "
    "weights, every token is handed the same. Gradients of queries and keys vanish with it, so "
    "that training does not find the way back.",
    not_this="Entropy collapse is the opposite: there rows are peaked, and tokens may be as "
    "different as ever. A sink hands all tokens nearly the same, too, but its values differ.",
    remedy="Look at the first layer that is named; the later ones are given what it makes. "
    "Residual connections and their gains, norms before attention, and the initial scale keep "
    "tokens apart.",
    source="Dong et al. 2021 (arXiv 2103.03404), Noci et al. 2022 (2206.03126).",
    basis="heuristic",
)


def find(model: ModelFigures) -> Iterator[HealthFinding]:
    """Yield the layers whose values or states are all alike."""
    for layer, one in enumerate(model.layers):
        if one.states is None:
            continue
        states = one.states
        alike = np.flatnonzero(states.value_residual < LEAST_RESIDUAL)
        if len(alike):
            # Of the key heads: their queries' heads, which stand one group after another.
            group = 1 if one.heads is None else len(one.heads.entropy) // len(states.value_residual)
            heads = [head for kv in alike for head in range(kv * group, (kv + 1) * group)]
            worst = states.value_residual[alike].min()
            yield RULE.finding(
                f"layer {layer}, {heads_in_words(heads)}: the values of all tokens are one vector "
                f"to {worst:.2g} of their size, in key {heads_in_words(alike)}",
                value=worst,
                threshold=LEAST_RESIDUAL,
                layer=layer,
                heads=heads,
            )
        if states.residual < LEAST_RESIDUAL:
            yield RULE.finding(
                f"layer {layer}: token states are one vector to {states.residual:.2g} of their "
                f"size (mean cosine {states.cosine:.4f})",
                value=states.residual,
                threshold=LEAST_RESIDUAL,
                layer=layer,
            )
        elif states.cosine > MOST_COSINE:
            yield RULE.finding(
                f"layer {layer}: token states have one direction, mean cosine {states.cosine:.5f}",
                value=states.cosine,
                threshold=MOST_COSINE,
                layer=layer,
            )
