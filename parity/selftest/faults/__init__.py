"""The faults the selftest injects: one file a family, apart from `parity.diagnose.causes`."""

from __future__ import annotations

from dataclasses import replace

from parity.selftest.fault import Fault
from parity.selftest.faults import (
    attention_heads,
    blocks,
    cache,
    gradients,
    gradients_attention,
    loss,
    masks,
    masks_applied,
    norm,
    rope,
    rotation,
    trained,
    weights,
)

FORWARD = (
    rope,
    rotation,
    norm,
    attention_heads,
    masks,
    masks_applied,
    cache,
    weights,
    blocks,
    trained,
)
FAMILIES = (*FORWARD, loss, gradients, gradients_attention)

# Families whose first fault is as plain in a narrow dtype as in float64.
GROSS = (
    *("R1", "R2", "R3", "R8", "R10", "N5", "G1", "G2", "M1", "M2", "M4", "M5", "M8", "M10"),
    *("C1", "C2", "C4", "W2", "W3", "W4"),
)


def catalogue() -> list[Fault]:
    """Return every injection."""
    found = [fault for family in FAMILIES for fault in family.faults()]
    gross = {f.family: f for f in reversed(found) if f.family in GROSS and f.lane == "f64"}
    return [
        *found,
        *(replace(gross[name], lane=lane) for name in GROSS for lane in ("f32", "bf16")),
    ]
