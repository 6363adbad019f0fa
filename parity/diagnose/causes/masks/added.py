"""A 0/1 mask is added to the scores."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import MutationSite
from parity.diagnose.operators import at_tap

CAUSE = Cause(
    id="mask-added",
    title="a 0/1 mask is added to the scores",
    what="Visible scores grow by one, hidden ones stay visible.",
    why="A boolean or 0/1 mask is passed where an additive bias is expected.",
    sources=("speculators#691", "pytorch#103963"),
    taps=("attn_probs",),
    remedy="Give kernels a boolean mask, or a bias of 0 and -inf.",
    rank=2,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose it."""
    if "mask" in e.flagged:
        return
    facts: Facts = {"effective": "scores + mask", "configured": "scores where mask"}
    yield at_tap(e, "mask-added", "0/1 mask added", added, **facts)


def added(site: MutationSite) -> Tensor:
    """Add the mask as numbers."""
    scores = site.seen["attn_scores"]
    return (scores + site.mask[:, None].to(scores.dtype)).softmax(-1)
