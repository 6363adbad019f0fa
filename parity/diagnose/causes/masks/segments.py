"""Packed documents see each other."""

from __future__ import annotations

from parity.diagnose.cause import Cause
from parity.diagnose.causes.masks.common import seeing

CAUSE = Cause(
    id="mask-segments",
    title="packed documents see each other",
    what="Tokens see the documents before theirs in a packed row.",
    why="Packing concatenates documents and the mask is merely causal.",
    sources=("axolotl#3796", "nanoVLM#204", "maxtext#4476"),
    taps=("attn_probs", "mask"),
    remedy="AND the mask with equality of document numbers.",
    rank=1,
)

EDITS = seeing("documents")
