"""No causal mask."""

from __future__ import annotations

from parity.diagnose.cause import Cause
from parity.diagnose.causes.masks.common import seeing

CAUSE = Cause(
    id="mask-not-causal",
    title="no causal mask",
    what="Tokens see what comes after them.",
    why="The causal flag is off, or the mask holds padding alone.",
    sources=("torch-to-nnef#217",),
    taps=("attn_probs", "mask"),
    remedy="Combine causality with every other mask.",
    rank=1,
)

EDITS = seeing("open", "open-pads")
