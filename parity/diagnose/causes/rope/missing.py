"""Rotation is missing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import MutationSite
from parity.diagnose.operators import ROTATED, at_tap, rotations, unrotate

CAUSE = Cause(
    id="rope-missing",
    title="rotation is missing",
    what="Queries or keys, or some of their heads, enter attention as they were projected.",
    why="A branch (a flag, a cache, a layer type) skips the rotation.",
    sources=(),
    taps=("q_rope", "k_rope"),
    remedy="Rotate q and k of every layer and head.",
    rank=3,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose none at all, or none of the heads that did not move."""
    before, after = e.real(ROTATED[e.short]), e.real(e.short)
    still = np.flatnonzero((before == after).all(axis=(0, 2)))
    if not len(still):
        return
    if len(still) == before.shape[1]:
        facts: Facts = {"effective": "no rotation", "configured": "rotation"}
        yield from rotations(e, "rope-missing", "no rotation", unrotate, **facts)
        return
    heads = torch.from_numpy(still)

    def some(site: MutationSite) -> Tensor:
        value = site.value.clone()
        value[:, :, heads] = unrotate(site)[:, :, heads].to(value.dtype)
        return value

    said = f"no rotation of {e.short[0]} heads {', '.join(map(str, still))}"
    yield at_tap(e, "rope-missing", said, some, effective=said, configured="rotation of every head")
