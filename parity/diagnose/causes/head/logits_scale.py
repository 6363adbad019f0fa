"""Logits carry a factor."""

from __future__ import annotations

from collections.abc import Iterator

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.operators import at_tap, true_output

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


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose the factor between the subject's logits and the reference's."""
    right, seen = true_output(e), e.real("logits")
    factor = float((right * seen).sum() / (right * right).sum())
    facts: Facts = {"effective": f"factor {factor:.6g}", "configured": "1"}
    if factor not in (0.0, 1.0):
        said = f"factor {factor:.6g}"
        yield at_tap(e, "logits-scale", said, lambda site: site.value * factor, **facts)
