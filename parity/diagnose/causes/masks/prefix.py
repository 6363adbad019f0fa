"""A prefix sees itself in both directions."""

from __future__ import annotations

from parity.diagnose.cause import Cause
from parity.diagnose.causes.masks.common import seeing

CAUSE = Cause(
    id="mask-prefix",
    title="a prefix sees itself in both directions",
    what="The first tokens see each other, later ones too.",
    why="A prefix-LM mask is used for a causal model.",
    sources=(),
    taps=("attn_probs", "mask"),
    remedy="Use a causal mask from the first token.",
    rank=5,
)

EDITS = seeing("prefix")
