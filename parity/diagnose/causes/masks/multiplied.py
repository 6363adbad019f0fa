"""The mask is multiplied into the scores."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import MutationSite
from parity.diagnose.operators import at_tap

CAUSE = Cause(
    id="mask-multiplied",
    title="the mask is multiplied into the scores",
    what="Hidden scores become 0, which is no small score.",
    why="A 0/1 mask is multiplied before the softmax.",
    sources=(),
    taps=("attn_probs",),
    remedy="Fill hidden scores with -inf, or the dtype's minimum.",
    rank=2,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose it."""
    if "mask" in e.flagged:
        return
    facts: Facts = {"effective": "scores * mask", "configured": "scores where mask"}
    yield at_tap(e, "mask-multiplied", "scores times mask", multiplied, **facts)


def multiplied(site: MutationSite) -> Tensor:
    """Set hidden scores to 0."""
    return site.seen["attn_scores"].masked_fill(~site.mask[:, None], 0).softmax(-1)
