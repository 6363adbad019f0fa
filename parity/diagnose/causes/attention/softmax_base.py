"""Softmax to another base."""

from __future__ import annotations

import math

from parity.diagnose.cause import Cause
from parity.diagnose.edits.named import NamedEdits, Pattern

CAUSE = Cause(
    id="softmax-base",
    title="softmax to another base",
    what="Weights are powers of 2 of the scores.",
    why="A kernel computes exp2 and its scores lack the factor log2(e).",
    sources=(),
    taps=("attn_probs",),
    remedy="Multiply scores by log2(e) before exp2.",
    rank=3,
)

EDITS = (
    NamedEdits(
        "base 2",
        (Pattern("factor", "attn_scores", ("*",), number=math.log(2)),),
        "base 2",
        "base e",
    ),
)
