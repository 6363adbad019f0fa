"""Scores carry another scale."""

from __future__ import annotations

from parity.diagnose.cause import Cause
from parity.diagnose.edits.named import NamedEdits, Pattern

CAUSE = Cause(
    id="score-scale",
    title="scores carry another scale",
    what="Products of queries and keys are multiplied by another number than head_dim ** -0.5.",
    why=(
        "The model dim or the number of heads is taken, the scale is applied twice (in q and "
        "in the kernel), or not at all."
    ),
    sources=("ng-video-lecture#6",),
    taps=("attn_scores",),
    remedy="Scale once, by head_dim ** -0.5.",
    rank=2,
)

EDITS = (NamedEdits("scale={0:.6g}", (Pattern("number", "scale"),), "{0:.6g}", "{scale:.6g}"),)
