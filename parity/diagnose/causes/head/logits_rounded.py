"""Logits are rounded."""

from __future__ import annotations

from parity.diagnose.cause import Cause
from parity.diagnose.edits.named import NamedEdits, Pattern

CAUSE = Cause(
    id="logits-rounded",
    title="logits are rounded",
    what="Logits have fewer bits than the run's dtype.",
    why="The head's output is cast with everything else.",
    sources=(),
    taps=("logits",),
    remedy="Keep logits in float32 or wider.",
    rank=6,
    rounding=True,
)

EDITS = (
    NamedEdits(
        "logits {value.said}",
        (Pattern("rounding", "product", ()),),
        "{value.dtype}",
        "the run's dtype",
    ),
)
