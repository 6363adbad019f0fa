"""The causal mask hides the diagonal."""

from __future__ import annotations

from parity.diagnose.cause import Cause
from parity.diagnose.causes.masks.common import seeing

CAUSE = Cause(
    id="mask-strict",
    title="the causal mask hides the diagonal",
    what="Tokens do not see themselves.",
    why="A strict comparison (j < i), or a triangle of the wrong diagonal.",
    sources=("mobius#365",),
    taps=("attn_probs", "mask"),
    remedy="Let token i see keys j <= i.",
    rank=1,
)

EDITS = seeing("strict", "strict-pads")
