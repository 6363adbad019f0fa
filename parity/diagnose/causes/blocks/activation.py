"""Another activation."""

from __future__ import annotations

from parity.diagnose.cause import Cause
from parity.diagnose.edits.named import NamedEdits, Pattern

CAUSE = Cause(
    id="activation",
    title="another activation",
    what="The gate passes through another function than SiLU.",
    why="hidden_act is ignored or its name is read as another function.",
    sources=(),
    taps=("mlp_act",),
    remedy="Use silu(gate) * up.",
    rank=4,
)

EDITS = (NamedEdits("{value.said}", (Pattern("operation", "activated"),), "{value.said}", "silu"),)
