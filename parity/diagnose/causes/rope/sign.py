"""Rotation goes backwards."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import MutationSite
from parity.diagnose.operators import rotations, unrotate

CAUSE = Cause(
    id="rope-sign",
    title="rotation goes backwards",
    what="Features are rotated by minus the angle.",
    why=(
        "The two signs of a rotation matrix are exchanged. With q and k both backwards the "
        "scores are those of mirrored positions, which weights trained the other way do not "
        "expect."
    ),
    sources=("nanochat, comment on checkpoint compatibility",),
    taps=("q_rope", "k_rope"),
    remedy="Compute (a cos - b sin, b cos + a sin).",
    rank=3,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose the opposite sign."""
    facts: Facts = {"effective": "angle -f p", "configured": "angle f p"}
    yield from rotations(e, "rope-sign", "sign -1", backwards, **facts)


def backwards(site: MutationSite) -> Tensor:
    """Rotate by minus the angle."""
    return site.reference.rotate(unrotate(site), site.cos, -site.sin)
