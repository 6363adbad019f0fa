"""The causal mask is off by one."""

from __future__ import annotations

from parity.diagnose.cause import Cause
from parity.diagnose.causes.masks.common import seeing

CAUSE = Cause(
    id="mask-off-by-one",
    title="the causal mask is off by one",
    what="Tokens see the next token, too.",
    why="A triangle of the wrong diagonal (k=1 hides the diagonal above, not the one meant).",
    sources=("torch-to-nnef#217", "mobius#365"),
    taps=("attn_probs", "mask"),
    remedy="Let token i see keys j <= i.",
    rank=1,
)

EDITS = seeing("shifted", "shifted-position", "shifted-pads", "next-row", "next-row-position")
