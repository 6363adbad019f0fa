"""Attention is cut in blocks."""

from __future__ import annotations

from parity.diagnose.cause import Cause
from parity.diagnose.causes.masks.common import seeing

CAUSE = Cause(
    id="mask-chunked",
    title="attention is cut in blocks",
    what="Tokens see their own block alone.",
    why="Chunked attention, or a window rounded to blocks, is used.",
    sources=(),
    taps=("attn_probs", "mask"),
    remedy="Use a causal mask over all keys.",
    rank=5,
)

EDITS = seeing("blocks")
