"""Logits are capped."""

from __future__ import annotations

from parity.diagnose.cause import Cause
from parity.diagnose.edits.named import NamedEdits, Pattern

CAUSE = Cause(
    id="logits-cap",
    title="logits are capped",
    what="Logits are squeezed by a tanh.",
    why="Gemma 2's soft cap is taken over.",
    sources=(),
    taps=("logits",),
    remedy="Use the logits as they are.",
    rank=3,
)

EDITS = (NamedEdits("cap {0:g}", (Pattern("limit", "product", ("soft",)),), "cap {0:g}", "none"),)
