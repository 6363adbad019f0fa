"""Partial softmaxes over history and new keys are merged wrongly."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import MutationSite
from parity.diagnose.operators import at_tap, softmax_over

CAUSE = Cause(
    id="softmax-merge",
    title="partial softmaxes are merged wrongly",
    what=(
        "Attention over the cached history and over the call's own keys is computed apart, and "
        "the two are averaged, or weighed by sums of exponentials from different maxima."
    ),
    why="A merge needs each part's maximum as well as its sum; one of them is not handed over.",
    sources=("maxtext#391",),
    taps=("attn_probs",),
    remedy="Merge with both: weigh part i by sum_i * exp(max_i - max).",
    rank=3,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose an average, and sums from each part's own maximum."""
    if e.chunks is None or "mask" in e.flagged:
        return
    for said, common in {
        "history and own keys averaged": False,
        "history and own keys merged without a common maximum": True,
    }.items():

        def merged(site: MutationSite, common: bool = common) -> Tensor:
            return site.value if site.held and not site.held.start else halves(site, common)

        facts: Facts = {"effective": said, "configured": "one softmax"}
        yield at_tap(e, "softmax-merge", said, merged, **facts)


def halves(site: MutationSite, by_sums: bool) -> Tensor:
    """Merge weights over the call's own keys and over those before it."""
    scores, visible = site.seen["attn_scores"], site.mask[:, None]
    own = torch.arange(scores.shape[-1]) >= scores.shape[-1] - scores.shape[-2]
    groups = [visible & own, visible & ~own]
    parts = [softmax_over(scores, group) for group in groups]
    if not by_sums:
        return (parts[0] + parts[1]) / 2
    sums = [total(scores, group) for group in groups]
    whole = (sums[0] + sums[1]).clamp(min=torch.finfo(scores.dtype).tiny)
    return (parts[0] * sums[0] + parts[1] * sums[1]) / whole


def total(scores: Tensor, visible: Tensor) -> Tensor:
    """Return the sum of exponentials from its own maximum; 0 where nothing is visible."""
    hidden = scores.masked_fill(~visible, -torch.inf)
    high = hidden.amax(-1, keepdim=True)
    return (hidden - high.masked_fill(high.isinf(), 0)).exp().sum(-1, keepdim=True)
