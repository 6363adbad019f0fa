"""Rows of different length share one position."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from parity.diagnose.cause import Cause, Hypothesis
from parity.diagnose.causes.rope.positions import moved, observed
from parity.diagnose.evidence import Evidence

CAUSE = Cause(
    id="position-shared",
    title="rows of different length share one position",
    what="In batched decoding every row is given the longest row's position.",
    why="One scalar counter serves the whole batch; padding made rows look equally long.",
    sources=("unsloth#3699", "unsloth#4078", "nnsight#673"),
    taps=("q_rope", "k_rope", "positions"),
    remedy="Keep one position per row, counted over its real tokens.",
    rank=5,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose one position for all rows, where the subject shows such."""
    seen = observed(e)
    if seen is None or e.chunks is None or len(seen) < 2:
        return
    here, real = seen[:, e.columns], e.valid
    highest = np.where(real, here, -1).max(axis=0)
    shared = bool((here == highest)[real].all()) and bool(here[real].any())
    if shared and not (e.positions == highest)[real].all():
        yield moved(e, "position-shared", "all rows at one position")
