"""Heads that rest on the first token."""

from __future__ import annotations

from collections.abc import Iterator

from parity.health.figures import ModelFigures
from parity.health.rule import HealthFinding, HealthRule, layers_in_words

SHARE = 0.3

RULE = HealthRule(
    id="sink",
    rank=14,
    severity="information",
    title="heads rest on the first token",
    checks="The share of heads that give the first token more than 0.3 of their weight, mean over "
    "the first 64 queries.",
    why="Trained models learn it: a softmax has to put its weight somewhere, and a head that has "
    "nothing to add puts it where values are small. Whoever cuts the first tokens out of a cache "
    "or quantises them coarsely breaks the model.",
    not_this="It is no collapse, though rows of a strong sink are peaked and its map has rank one.",
    remedy="Nothing. Keep the first tokens in a sliding cache.",
    source="Gu et al. 2024 (arXiv 2410.10781): Sink with epsilon = 0.3 at T = 64.",
    basis="paper",
)


def find(model: ModelFigures) -> Iterator[HealthFinding]:
    """Yield it once for the model."""
    shown = [(layer, one.heads) for layer, one in enumerate(model.layers) if one.heads is not None]
    if not shown or model.tokens < 8:  # of few keys the first has 0.3 by chance
        return
    sinks = {layer: heads.sink[heads.sink > SHARE] for layer, heads in shown}
    sinks = {layer: weights for layer, weights in sinks.items() if len(weights)}
    if not sinks:
        return
    count, total = sum(map(len, sinks.values())), sum(len(heads.sink) for _, heads in shown)
    most = max(sinks, key=lambda layer: len(sinks[layer]))
    elsewhere = sum(
        int(((heads.column > SHARE) & (heads.column_first < 0.5)).sum()) for _, heads in shown
    )
    beside = f"; {elsewhere} heads give as much to another token" if elsewhere else ""
    yield RULE.finding(
        f"{count} of {total} heads rest on the first token ({layers_in_words(sinks)}, most in "
        f"layer {most}), over the first {min(model.tokens, 64)} tokens{beside}",
        value=max(weights.max() for weights in sinks.values()),
        threshold=SHARE,
    )
