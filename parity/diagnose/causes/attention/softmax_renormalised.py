"""The mask is applied after the softmax."""

from __future__ import annotations

from parity.diagnose.cause import Cause
from parity.diagnose.edits.named import NamedEdits, Pattern

CAUSE = Cause(
    id="softmax-renormalised",
    title="the mask is applied after the softmax",
    what=("Weights of hidden keys are set to 0 after they took their share: rows do not sum to 1."),
    why="The mask multiplies weights, not scores.",
    sources=(),
    taps=("attn_probs",),
    remedy="Mask scores, before the softmax.",
    rank=2,
)

EDITS = (
    NamedEdits(
        "masked after softmax",
        (Pattern("order", "hidden", ("left out", "attn_scores")),),
        "softmax, then mask",
        "mask, then softmax",
    ),
)
