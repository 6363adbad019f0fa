"""A layer all of whose heads have maps of rank one."""

from __future__ import annotations

from collections.abc import Iterator

from parity.health.figures import ModelFigures
from parity.health.rule import HealthFinding, HealthRule, layers_in_words

MOST = 1

RULE = HealthRule(
    id="lazy-layer",
    rank=16,
    severity="information",
    title="all maps of a layer are of rank one",
    checks="How many singular values of a head's map have nine tenths of their squares, over the "
    "first 512 tokens; the largest of the layer's heads: 1.",
    why="Each of its heads gives every token nearly the same weights: the layer attends to one "
    "place. Many trained models have such layers, mostly late ones, and can do without some.",
    not_this="Values may be as different as ever: it is no rank collapse of tokens. Sinks make "
    "lazy layers.",
    remedy="Nothing, in a trained model. In training: a smaller model might do, or a better start.",
    source="Sanyal et al. 2024 (Inheritune, arXiv 2404.08634).",
    basis="paper",
)


def find(model: ModelFigures) -> Iterator[HealthFinding]:
    """Yield it once for all layers that are lazy."""
    lazy = [
        layer
        for layer, one in enumerate(model.layers)
        if one.heads is not None and one.heads.lazy_k.max() <= MOST
    ]
    if lazy and model.tokens > 8:  # the map of few tokens has few singular values
        yield RULE.finding(
            f"{layers_in_words(lazy)}: one singular value has nine tenths of every head's map",
            value=float(MOST),
            threshold=float(MOST),
            layer=lazy[0] if len(lazy) == 1 else None,
        )
