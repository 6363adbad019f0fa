"""Partial softmaxes, over history and new keys or over blocks of keys, are merged wrongly."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import MutationSite
from parity.diagnose.operators import at_tap, group_heads, softmax_over

CAUSE = Cause(
    id="softmax-merge",
    title="partial softmaxes are merged wrongly",
    what=(
        "Attention over the cached history and over the call's own keys is computed apart, and "
        "the two are averaged, or weighed by sums of exponentials from different maxima; or over "
        "blocks of keys, and what earlier ones gave is not scaled down as the maximum rises."
    ),
    why=(
        "A merge needs each part's maximum as well as its sum; one of them is not handed over. An "
        "online softmax has to rescale its values by what it rescales its sum by."
    ),
    sources=("maxtext#391",),
    taps=("attn_probs", "attn_context"),
    remedy="Merge with both: weigh part i by sum_i * exp(max_i - max), values and sums alike.",
    rank=3,
)


# Keys a block, for an online softmax to be recognised.
SIZES = (2, 4, 8, 16, 32, 64, 128, 256, 512)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose an average, and sums from each part's own maximum; of values, blocks."""
    if "mask" in e.flagged:
        return
    if e.short == "attn_context":
        yield from _in_blocks(e)
    elif e.chunks is not None:
        yield from _of_two(e)


def _in_blocks(e: Evidence) -> Iterator[Hypothesis]:
    for size in (size for size in SIZES if size < e.mask.shape[-1]):
        said = f"values over blocks of {size} keys not rescaled"

        def summed(site: MutationSite, size: int = size) -> Tensor:
            return unscaled(site, size, by_slot=e.chunks is not None)

        facts: Facts = {"effective": said, "configured": "one softmax"}
        yield at_tap(e, "softmax-merge", said, summed, **facts)


def unscaled(site: MutationSite, size: int, *, by_slot: bool) -> Tensor:
    """Return values [B T N H] whose weights are from the maximum of the blocks up to their own.

    Args:
        site: where.
        size: keys a block.
        by_slot: whether a cache holds them, without pads.
    """
    visible, weights = site.mask[:, None], site.seen["attn_probs"]
    scores = site.seen["attn_scores"].masked_fill(~visible, -torch.inf)
    key = torch.arange(scores.shape[-1])[None]
    if by_slot and site.held is not None:
        key = site.held.valid[:, : site.held.stop].cumsum(1) - 1
    block = torch.div(key, size, rounding_mode="floor")[:, None, None, :]
    high = scores
    for number in range(int(block.max()) + 1):
        so_far = scores.masked_fill(block > number, -torch.inf).amax(-1, keepdim=True)
        high = torch.where(block == number, so_far, high)
    grown = weights * (scores.amax(-1, keepdim=True) - high).exp()
    values = group_heads(site, "values", site.reference.kv_head_of_query())
    return (grown.masked_fill(~visible, 0).to(values.dtype) @ values).transpose(1, 2)


def _of_two(e: Evidence) -> Iterator[Hypothesis]:
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
