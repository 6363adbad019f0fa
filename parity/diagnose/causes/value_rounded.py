"""A value is rounded where the reference rounds nothing: what is in no other file."""

from __future__ import annotations

from collections.abc import Iterator

from parity.diagnose.cause import LAST, Cause, Hypothesis
from parity.diagnose.edits.hypotheses import edited_operators
from parity.diagnose.edits.kinds import rounding
from parity.diagnose.evidence import Evidence
from parity.subjects.torch_reference.program import PROGRAM

CAUSE = Cause(
    id="value-rounded",
    title="a value is rounded where the reference rounds nothing",
    what=(
        "A step of an operator gives values of fewer bits than the run's dtype; the steps and the "
        "dtype are named."
    ),
    why=(
        "A cast is left in, or a buffer, a constant or an intermediate has a dtype of its own. It "
        "was found by trying, and confirmed in the whole model."
    ),
    sources=(),
    taps=(*PROGRAM,),
    remedy="Remove the cast at the step that is named, or compute it in the run's dtype.",
    rank=LAST,
    rounding=True,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose the fewest values whose rounding leaves nothing of the difference."""
    yield from edited_operators(e, CAUSE.id, (rounding.ID,))
