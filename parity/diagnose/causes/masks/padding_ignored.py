"""Padding is ignored."""

from __future__ import annotations

from parity.diagnose.cause import Cause
from parity.diagnose.causes.masks.common import seeing

CAUSE = Cause(
    id="mask-padding-ignored",
    title="padding is ignored",
    what="Real tokens see pads.",
    why="The padding mask is not passed on, or masks queries where it ought to mask keys.",
    sources=("maxtext#913", "maxtext#4016", "mlx-lm#1906", "hyunwoongko/transformer#40"),
    taps=("attn_probs", "mask"),
    remedy="Hide pad keys from every query, as the last step.",
    rank=1,
)

EDITS = seeing("pads", "pads-queries")
