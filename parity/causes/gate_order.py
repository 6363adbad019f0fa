"""The activation is on up, not on gate."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from parity.causes.base import Cause, Evidence, Hypothesis
from parity.causes.operators import one
from parity.causes.wrong import Site

CAUSE = Cause(
    id="gate-order",
    title="the activation is on up, not on gate",
    what="silu(up) * gate stands in for silu(gate) * up.",
    why="A fused projection is split in the other order.",
    sources=("breakdown-minimind#3",),
    taps=("mlp_act",),
    remedy="Activate the gate: w1 in Meta's names.",
    rank=3,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose the other order."""
    facts = {"effective": "silu(up) * gate", "configured": "silu(gate) * up"}
    yield one(e, "gate-order", "silu(up) * gate", exchanged, **facts)


def exchanged(site: Site) -> Tensor:
    """Activate up."""
    return site.reference.activation(site.seen["up_proj"], site.seen["gate_proj"])
