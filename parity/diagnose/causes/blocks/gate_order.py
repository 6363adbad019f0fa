"""The activation is on up, not on gate."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import MutationSite
from parity.diagnose.operators import at_tap

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
    facts: Facts = {"effective": "silu(up) * gate", "configured": "silu(gate) * up"}
    yield at_tap(e, "gate-order", "silu(up) * gate", exchanged, **facts)


def exchanged(site: MutationSite) -> Tensor:
    """Activate up."""
    return site.reference.activation(site.seen["up_proj"], site.seen["gate_proj"])
