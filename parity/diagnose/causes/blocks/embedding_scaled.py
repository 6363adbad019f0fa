"""Embeddings carry a factor."""

from __future__ import annotations

from parity.diagnose.cause import Cause
from parity.diagnose.edits.named import NamedEdits, Pattern

CAUSE = Cause(
    id="embedding-scaled",
    title="embeddings carry a factor",
    what="Embedded tokens are multiplied, by sqrt(D) as in Gemma or by another factor.",
    why="Another family's convention is taken over.",
    sources=(),
    taps=("embed",),
    remedy="Use the rows of the embedding as they are.",
    rank=4,
)

EDITS = (
    NamedEdits("factor {0:.6g}", (Pattern("factor", "embed", ("*",)),), "factor {0:.6g}", "1"),
)
