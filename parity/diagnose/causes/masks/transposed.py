"""Queries and keys of the mask are exchanged."""

from __future__ import annotations

from parity.diagnose.cause import Cause
from parity.diagnose.causes.masks.common import seeing

CAUSE = Cause(
    id="mask-transposed",
    title="queries and keys of the mask are exchanged",
    what="Query i sees the keys that ought to see it.",
    why="An axis of the mask is mistaken: [B S T] for [B T S].",
    sources=("hyunwoongko/transformer#40",),
    taps=("attn_probs", "mask"),
    remedy="Keep the layout [B T S], queries before keys.",
    rank=2,
)

EDITS = seeing("transposed", "transposed-real", "transposed-position")
