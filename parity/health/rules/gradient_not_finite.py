"""Gradients that are no numbers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from parity.health.figures import ModelFigures
from parity.health.rule import HealthFinding, HealthRule

RULE = HealthRule(
    id="gradient-not-finite",
    rank=5,
    severity="error",
    title="gradients are NaN or infinite",
    checks="Whether every gradient of a layer's weights is a finite number. The layer that is "
    "named is the last one whose are not: gradients go from the last layer to the first, and it is "
    "where they break.",
    why="A step on such gradients makes every weight NaN; a training that passes over such steps "
    "stands still. The forward pass can be finite all the same.",
    not_this="Gradients that are finite and far larger than other layers' are gradient-exploding.",
    remedy="Take them in a wider dtype (--dtype f64), and look at this layer for weights that are "
    "huge where what they are multiplied with is tiny. jaxllama train names the tap where they "
    "break.",
    source="A gradient's own meaning.",
    basis="definition",
)


def find(model: ModelFigures) -> Iterator[HealthFinding]:
    """Yield it once, for the layer where they break."""
    broken = [
        layer for layer, one in enumerate(model.gradients or ()) if not np.isfinite(one.whole)
    ]
    if not broken:
        return
    last, before = broken[-1], len(broken) - 1
    beside = f", nor are those of {before} layer{'s' * (before > 1)} before it" if before else ""
    yield RULE.finding(
        f"layer {last}: gradients are not finite{beside}",
        value=len(broken),
        threshold=0.0,
        layer=last,
    )
