"""Logits carry a factor."""

from __future__ import annotations

from parity.diagnose.cause import Cause
from parity.diagnose.edits.named import NamedEdits, Pattern

CAUSE = Cause(
    id="logits-scale",
    title="logits carry a factor",
    what="Logits are multiplied by a number.",
    why="A temperature or another family's logit scale is built into the model.",
    sources=(),
    taps=("logits",),
    remedy="Apply temperatures in sampling alone.",
    rank=4,
)

EDITS = (
    NamedEdits("factor {0:.6g}", (Pattern("factor", "product", ("*",)),), "factor {0:.6g}", "1"),
)
