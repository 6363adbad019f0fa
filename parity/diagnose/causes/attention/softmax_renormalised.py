"""The mask is applied after the softmax."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import MutationSite
from parity.diagnose.operators import at_tap

CAUSE = Cause(
    id="softmax-renormalised",
    title="the mask is applied after the softmax",
    what=("Weights of hidden keys are set to 0 after they took their share: rows do not sum to 1."),
    why="The mask multiplies weights, not scores.",
    sources=(),
    taps=("attn_probs",),
    remedy="Mask scores, before the softmax.",
    rank=2,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose it."""
    if "mask" in e.flagged:
        return
    facts: Facts = {"effective": "softmax, then mask", "configured": "mask, then softmax"}
    yield at_tap(e, "softmax-renormalised", "masked after softmax", late, **facts)


def late(site: MutationSite) -> Tensor:
    """Hide weights, not scores."""
    return site.seen["attn_scores"].softmax(-1).masked_fill(~site.mask[:, None], 0)
