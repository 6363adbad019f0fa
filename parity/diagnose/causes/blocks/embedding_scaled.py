"""Embeddings carry a factor."""

from __future__ import annotations

from collections.abc import Iterator

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.operators import at_tap, true_output

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


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose the factor between the subject's embeddings and the reference's."""
    right, seen = true_output(e), e.real("embed")
    factor = float((right * seen).sum() / (right * right).sum())
    facts: Facts = {"effective": f"factor {factor:.6g}", "configured": "1"}
    if factor != 1:
        yield at_tap(
            e, "embedding-scaled", f"factor {factor:.6g}", lambda s: s.value * factor, **facts
        )
