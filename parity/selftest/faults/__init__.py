"""The faults the selftest injects: one file a family, apart from `parity.causes`."""

from __future__ import annotations

from parity.selftest.fault import Fault
from parity.selftest.faults import (
    backward,
    backward_attention,
    blocks,
    cache,
    gqa,
    loss,
    mask_kernels,
    masks,
    norm,
    rope,
    rotation,
    trained,
    weights,
)

FORWARD = (rope, rotation, norm, gqa, masks, mask_kernels, cache, weights, blocks, trained)
FAMILIES = (*FORWARD, loss, backward, backward_attention)


def catalogue() -> list[Fault]:
    """Return every injection."""
    return [fault for family in FAMILIES for fault in family.faults()]
