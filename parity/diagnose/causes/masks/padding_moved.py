"""The padding mask is for another layout."""

from __future__ import annotations

from parity.diagnose.cause import Cause
from parity.diagnose.causes.masks.common import seeing

CAUSE = Cause(
    id="mask-padding-moved",
    title="the padding mask is for another layout",
    what="Pads at one end are hidden where they stand at the other.",
    why="The mask was made before a step that moved the padding.",
    sources=("transformers#35855",),
    taps=("attn_probs", "mask"),
    remedy="Make the mask after all padding and shifting.",
    rank=2,
)

EDITS = seeing("right-padding", "left-padding")
