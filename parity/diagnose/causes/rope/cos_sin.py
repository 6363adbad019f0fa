"""Cos and sin are exchanged."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import MutationSite
from parity.diagnose.operators import rotations, unrotate

CAUSE = Cause(
    id="rope-cos-sin",
    title="cos and sin are exchanged",
    what="The rotation takes the sine where the cosine belongs and the reverse.",
    why="A function returns the two in the other order than its caller unpacks.",
    sources=(),
    taps=("q_rope", "k_rope"),
    remedy="Unpack cos and sin in the order they are returned.",
    rank=3,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose the exchange."""
    facts: Facts = {"effective": "(sin, cos)", "configured": "(cos, sin)"}
    yield from rotations(e, "rope-cos-sin", "cos and sin exchanged", exchanged, **facts)


def exchanged(site: MutationSite) -> Tensor:
    """Rotate with sines for cosines."""
    return site.reference.rotate(unrotate(site), site.sin, site.cos)
