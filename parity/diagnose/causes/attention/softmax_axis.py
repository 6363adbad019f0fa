"""Softmax over the wrong axis."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import MutationSite
from parity.diagnose.operators import at_tap, softmax_over

CAUSE = Cause(
    id="softmax-axis",
    title="softmax over the wrong axis",
    what="Weights add up to 1 over queries, not over keys.",
    why="The axis of softmax is wrong, or scores are transposed.",
    sources=(),
    taps=("attn_probs",),
    remedy="Normalise over keys, the last axis of [B N T S].",
    rank=3,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose it."""
    if "mask" in e.flagged:
        return
    facts: Facts = {"effective": "over queries", "configured": "over keys"}
    yield at_tap(e, "softmax-axis", "softmax over queries", over_queries, **facts)


def over_queries(site: MutationSite) -> Tensor:
    """Normalise over queries."""
    scores, visible = site.seen["attn_scores"].mT, site.mask[:, None].mT
    return softmax_over(scores, visible).mT
