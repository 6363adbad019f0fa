"""The mask is inverted."""

from __future__ import annotations

from parity.diagnose.cause import Cause
from parity.diagnose.causes.masks.common import seeing

CAUSE = Cause(
    id="mask-inverted",
    title="the mask is inverted",
    what="What is to be hidden is visible and the reverse.",
    why=(
        "True means hidden in one library and visible in another; an additive 0/-inf array "
        "taken as booleans is exactly inverted."
    ),
    sources=("x-transformers#160", "LLMs-from-scratch#1061", "transformers#38094"),
    taps=("attn_probs", "mask"),
    remedy="State the meaning of True where the mask is made, and convert once.",
    rank=1,
)

EDITS = seeing("inverted", "inverted-real", "inverted-position")
