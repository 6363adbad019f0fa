"""Rotation is applied twice."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import MutationSite
from parity.diagnose.operators import rotations, unrotate

CAUSE = Cause(
    id="rope-twice",
    title="rotation is applied twice",
    what="Queries or keys are rotated by twice their angle.",
    why="Both the layer and the cache, or both the model and a fused kernel, rotate.",
    sources=(),
    taps=("q_rope", "k_rope"),
    remedy="Rotate once, before keys enter the cache.",
    rank=3,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose a second rotation."""
    facts: Facts = {"effective": "2 rotations", "configured": "1"}
    yield from rotations(e, "rope-twice", "rotated twice", twice, **facts)


def twice(site: MutationSite) -> Tensor:
    """Rotate the rotated."""
    once = site.reference.rotate(unrotate(site), site.cos, site.sin)
    return site.reference.rotate(once, site.cos, site.sin)
