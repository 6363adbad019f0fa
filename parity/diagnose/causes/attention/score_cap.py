"""Scores are capped."""

from __future__ import annotations

from parity.diagnose.cause import Cause
from parity.diagnose.edits.named import NamedEdits, Pattern

CAUSE = Cause(
    id="score-cap",
    title="scores are capped",
    what="Scores are squeezed by a tanh before the mask.",
    why="Gemma 2's soft cap is taken over.",
    sources=(),
    taps=("attn_scores",),
    remedy="Use the scores as they are.",
    rank=3,
)

EDITS = (NamedEdits("cap {0:g}", (Pattern("limit", "scores", ("soft",)),), "cap {0:g}", "none"),)
