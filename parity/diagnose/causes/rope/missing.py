"""Rotation is missing."""

from __future__ import annotations

from parity.diagnose.cause import Cause
from parity.diagnose.edits.named import INPUT, NamedEdits, Pattern

CAUSE = Cause(
    id="rope-missing",
    title="rotation is missing",
    what="Queries or keys, or some of their heads, enter attention as they were projected.",
    why="A branch (a flag, a cache, a layer type) skips the rotation.",
    sources=(),
    taps=("q_rope", "k_rope"),
    remedy="Rotate q and k of every layer and head.",
    rank=3,
)

EDITS = (
    NamedEdits(
        "no rotation {scope}",
        (Pattern("operand", "rotated", ("0", INPUT)),),
        "no rotation",
        "rotation",
        scoped=True,
    ),
)
