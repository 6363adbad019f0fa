"""Heads are silenced."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from parity.diagnose.cause import Cause, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import MutationSite
from parity.diagnose.operators import at_tap

CAUSE = Cause(
    id="head-silenced",
    title="heads are silenced",
    what="Some query heads give zeros.",
    why="Pruned, or cut off by a sharding that does not divide the heads.",
    sources=(),
    taps=("attn_context",),
    remedy="Merge all heads.",
    rank=4,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose zeros for the heads that are zero."""
    dead = np.flatnonzero((e.real("attn_context") == 0).all(axis=(0, 2)))
    if not len(dead):
        return
    heads = torch.from_numpy(dead)
    said = f"heads {', '.join(map(str, dead))} zero"

    def silent(site: MutationSite) -> Tensor:
        return site.value.index_fill(2, heads, 0)

    yield at_tap(e, "head-silenced", said, silent, effective=said, configured="all heads")
