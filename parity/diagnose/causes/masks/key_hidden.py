"""A key is hidden from later tokens."""

from __future__ import annotations

from parity.diagnose.cause import Cause
from parity.diagnose.causes.masks.common import seeing

CAUSE = Cause(
    id="mask-key-hidden",
    title="a key is hidden from later tokens",
    what="One column of the mask is empty below its diagonal.",
    why=("A mask made from token ids hides a real token that equals the pad or the start token."),
    sources=("transformers#23530",),
    taps=("attn_probs", "mask"),
    remedy="Make padding masks from lengths, never from ids.",
    rank=5,
)

EDITS = seeing("hidden")
