"""Positions of packed documents do not start anew."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from parity.diagnose.cause import Cause, Hypothesis
from parity.diagnose.causes.rope.positions import moved, observed
from parity.diagnose.evidence import Evidence

CAUSE = Cause(
    id="position-segments",
    title="positions of packed documents do not start anew",
    what=(
        "Positions run on through a packed row, where each document's tokens are to count from 0."
    ),
    why="Packing joins documents before positions are made.",
    sources=("axolotl#3796", "nanoVLM#204", "maxtext#4476"),
    taps=("q_rope", "k_rope", "positions"),
    remedy="Restart positions at every document.",
    rank=4,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose positions that run on, where the subject shows such."""
    seen = observed(e)
    if seen is None or e.inputs.segments is None:
        return
    running = np.cumsum(e.inputs.valid, axis=1) - 1
    if np.array_equal(seen[e.inputs.valid], running[e.inputs.valid]):
        yield moved(
            e,
            "position-segments",
            "positions run on through a row",
            lambda i, _: np.maximum(np.cumsum(i.valid, axis=1) - 1, 0),
        )
