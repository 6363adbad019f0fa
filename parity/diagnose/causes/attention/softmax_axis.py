"""Softmax over the wrong axis."""

from __future__ import annotations

from parity.diagnose.cause import Cause
from parity.diagnose.edits.named import NamedEdits, Pattern
from parity.subjects.torch_reference.operations import Softmax

CAUSE = Cause(
    id="softmax-axis",
    title="softmax over the wrong axis",
    what="Weights add up to 1 over queries, not over keys.",
    why="The axis of softmax is wrong, or scores are transposed.",
    sources=(),
    taps=("attn_probs",),
    remedy="Normalise over keys, the last axis of [B N T S].",
    rank=3,
)

EDITS = (
    NamedEdits(
        "softmax over queries",
        (Pattern("operation", "softmax", value=Softmax(-2)),),
        "over queries",
        "over keys",
    ),
)
