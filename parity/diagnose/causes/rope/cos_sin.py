"""Cos and sin are exchanged."""

from __future__ import annotations

from parity.diagnose.cause import Cause
from parity.diagnose.edits.named import NamedEdits, Pattern

CAUSE = Cause(
    id="rope-cos-sin",
    title="cos and sin are exchanged",
    what="The rotation takes the sine where the cosine belongs and the reverse.",
    why="A function returns the two in the other order than its caller unpacks.",
    sources=(),
    taps=("q_rope", "k_rope"),
    remedy="Unpack cos and sin in the order they are returned.",
    rank=3,
)

EDITS = (
    NamedEdits(
        "cos and sin exchanged",
        (Pattern("operand", "cosines", ("0", "sin")), Pattern("operand", "sines", ("0", "cos"))),
        "(sin, cos)",
        "(cos, sin)",
    ),
)
