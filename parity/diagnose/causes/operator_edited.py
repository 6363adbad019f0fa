"""An operator computes something else: what is in no other file."""

from __future__ import annotations

from collections.abc import Iterator

from parity.diagnose.cause import LAST, Cause, Hypothesis
from parity.diagnose.edits.hypotheses import edited_operators
from parity.diagnose.edits.kinds import kinds
from parity.diagnose.evidence import Evidence
from parity.subjects.torch_reference.program import PROGRAM

CAUSE = Cause(
    id="operator-edited",
    title="an operator computes something else",
    what=(
        "The reference's steps, with the edits that are named, make of the subject's own inputs "
        "what the subject shows: a constant is another, a step is left out or done twice, reads "
        "another value, runs along another axis, rounds or cuts off."
    ),
    why=(
        "The mistake has no page of its own; the edits say exactly which one it is. They were "
        "found by trying, the simplest first, and confirmed in the whole model."
    ),
    sources=(),
    taps=(*PROGRAM,),
    remedy="Compare the step that is named with the operator's code, and undo the edit there.",
    rank=LAST + 1,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose the simplest edits of the tap's program that leave nothing of the difference."""
    yield from edited_operators(e, CAUSE.id, tuple(kinds()))
