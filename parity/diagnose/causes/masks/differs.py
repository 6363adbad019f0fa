"""The mask is another."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from parity.diagnose.cause import LAST, Cause, Hypothesis
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
    """Propose the mask that the subject shows, whatever its rule."""
    mask = e.observed_mask
    if mask is None or "mask" not in e.flagged or not e.masked:
        return
    rows = e.inputs.valid
    more = int((mask & ~e.inputs.mask)[rows].sum())
    less = int((~mask & e.inputs.mask)[rows].sum())
    yield Hypothesis(
        CAUSE.id,
        "the mask that the subject shows",
        mask=np.array(mask),
        effective=f"{more} cells more, {less} fewer",
        configured="the scenario's mask",
    )
