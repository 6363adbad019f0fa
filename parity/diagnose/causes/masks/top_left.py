"""The causal mask is aligned top left."""

from __future__ import annotations

from parity.diagnose.cause import Cause
from parity.diagnose.causes.masks.common import seeing

CAUSE = Cause(
    id="mask-top-left",
    title="the causal mask is aligned top left",
    what="With a cache, the first query of a call sees the first key alone.",
    why="A triangle over [T S] counts queries from 0, though S keys precede them.",
    sources=("pytorch#103082", "pytorch#108108", "flax#5591"),
    taps=("attn_probs", "mask"),
    remedy="Align to the last key, or compare positions.",
    rank=2,
)

EDITS = seeing("top-left", "top-left-slots", "top-left-cut", "top-left-slots-cut")
