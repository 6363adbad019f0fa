"""The mask is another."""

from __future__ import annotations

from collections.abc import Iterator

from parity.diagnose.cause import LAST, Cause, Hypothesis
from parity.diagnose.causes.masks.common import Named, seeing
from parity.diagnose.evidence import Evidence

CAUSE = Cause(
    id="mask-differs",
    title="the mask is another",
    what=(
        "Cells of the mask differ from what the scenario asks, in no pattern that is known here."
    ),
    why="",
    sources=(),
    taps=("attn_probs", "mask"),
    remedy="Draw the mask (`parity lint`) and compare it with what was meant.",
    rank=LAST + 2,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose the masks of this kind; the one that the subject's cells show is kept."""
    yield from seeing(e, CAUSE.id, wrong_masks)


def wrong_masks(e: Evidence) -> Iterator[Named]:
    """Yield masks [B T T] with their names."""
    if e.observed_mask is not None:
        yield "the mask that the subject shows", e.observed_mask
