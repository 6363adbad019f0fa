"""Slots that nobody has written take part in the softmax."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from parity.diagnose.cause import Cause, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import Mutation, MutationSite

CAUSE = Cause(
    id="cache-unwritten-visible",
    title="unwritten cache slots are visible",
    what=(
        "Queries see slots behind the last token. Their keys are zeros, so their scores are 0, "
        "and they take weight from the keys that count."
    ),
    why="The mask covers the cache's whole length in place of what is written of it.",
    sources=("transformers#30400",),
    taps=("attn_probs",),
    remedy="Hide slots from the row's length on; a cache's capacity is no length.",
    rank=3,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose the capacity that the missing weight tells, for every call or single tokens."""
    slots = capacity(e)
    if slots is None:
        return
    for when in ("every call", "single tokens"):

        def weights(site: MutationSite, when: str = when) -> Tensor:
            assert site.held is not None
            if when == "single tokens" and site.held.sizes[-1] > 1:
                return site.value
            return diluted(site, slots - site.held.valid[:, : site.held.stop].sum(1))

        yield Hypothesis(
            "cache-unwritten-visible",
            f"unwritten ones of {slots} slots seen in {when}",
            (Mutation("attn_probs", weights),),
            effective=f"all {slots} slots visible",
            configured="those written",
        )


def capacity(e: Evidence) -> int | None:
    """Return how many slots a row must have for the weight that is missing; None if rows differ.

    A row of weights p over scores s misses a share that m further scores of 0 explain:
    m = exp(s) / p - sum exp(s).
    """
    if e.chunks is None or "mask" in e.flagged:
        return None
    scores = np.asarray(e.subject["attn_scores"], np.float64)
    weights = np.asarray(e.subject["attn_probs"], np.float64)
    seen = np.broadcast_to(e.mask[:, None], scores.shape)
    terms = np.where(seen, np.exp(np.where(seen, scores, 0.0)), 0.0)
    best = terms.argmax(-1)[..., None]
    largest, weight = (np.take_along_axis(a, best, -1)[..., 0] for a in (terms, weights))
    more = largest / weight - terms.sum(-1)
    found = more + e.held.sum(1)[:, None, None]
    rows = np.broadcast_to((e.valid & e.mask.any(-1))[:, None], found.shape)
    slots = np.median(found[rows])
    if not np.isfinite(slots) or np.abs(found[rows] - slots).max() > 0.01 * max(slots, 1):
        return None
    return round(float(slots)) if (more[rows] > 0.5).any() else None


def diluted(site: MutationSite, more: Tensor) -> Tensor:
    """Return weights over what is visible and `more` [B] further scores of 0."""
    scores = site.seen["attn_scores"].masked_fill(~site.mask[:, None], -torch.inf)
    high = scores.amax(-1, keepdim=True).clamp(min=0)
    terms = (scores - high).exp()
    return terms / (terms.sum(-1, keepdim=True) + more[:, None, None, None] * (-high).exp())
