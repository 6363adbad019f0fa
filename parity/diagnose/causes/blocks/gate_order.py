"""The activation is on up, not on gate."""

from __future__ import annotations

from parity.diagnose.cause import Cause
from parity.diagnose.edits.named import NamedEdits, Pattern

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

EDITS = (
    NamedEdits(
        "silu(up) * gate",
        (Pattern("operand", "gate_proj", ("exchanged", "up_proj")),),
        "silu(up) * gate",
        "silu(gate) * up",
    ),
)
