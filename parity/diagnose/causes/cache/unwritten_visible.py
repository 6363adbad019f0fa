"""Slots that nobody has written take part in the softmax."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from parity.diagnose.cause import Cause, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import CacheWrites, Mutation, MutationSite

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
    """Propose the capacity that the missing weight tells, for every call or single tokens.

    Or the few slots behind the last written one, if there are as many in every row.
    """
    more = unwritten_seen(e)
    if more is None:
        return
    slots, behind = _common(more + e.held.sum(1)[:, None, None], e), _common(more, e)
    if slots is not None:
        # As many as the scenario has columns may be as many as every scenario has.
        if slots == e.inputs.valid.shape[1]:
            yield from _all_of(None, "all of the scenario's slots")
        yield from _all_of(slots, f"unwritten ones of {slots} slots")
    if behind is not None:

        def few(site: MutationSite) -> Tensor:
            assert site.held is not None and behind is not None
            left = site.held.valid.shape[1] - _written(site.held)
            return diluted(site, left.clamp(max=behind))

        said = f"{behind} unwritten slot{'s' * (behind > 1)} behind the last seen"
        yield Hypothesis(
            "cache-unwritten-visible",
            said,
            (Mutation("attn_probs", few),),
            effective=said,
            configured="those written",
        )


def _all_of(slots: int | None, said: str) -> Iterator[Hypothesis]:
    """Yield that so many slots are seen; None for as many as a scenario has columns."""
    for when in ("every call", "single tokens"):

        def weights(site: MutationSite, when: str = when) -> Tensor:
            assert site.held is not None
            if when == "single tokens" and site.held.sizes[-1] > 1:
                return site.value
            whole = site.held.valid.shape[1] if slots is None else slots
            return diluted(site, whole - _written(site.held))

        yield Hypothesis(
            "cache-unwritten-visible",
            f"{said} seen in {when}",
            (Mutation("attn_probs", weights),),
            effective="all slots visible" if slots is None else f"all {slots} slots visible",
            configured="those written",
        )


def _written(held: CacheWrites) -> Tensor:
    """Return how many slots each row has written [B]."""
    return held.valid[:, : held.stop].sum(1)


def unwritten_seen(e: Evidence) -> np.ndarray | None:
    """Return how many scores of 0 the missing weight of each row explains [B N T].

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
    rows = np.broadcast_to((e.valid & e.mask.any(-1))[:, None], more.shape)
    return more if (more[rows] > 0.5).any() else None


def _common(count: np.ndarray, e: Evidence) -> int | None:
    """Return the whole number that a count [B N T] is in every row; None if rows differ."""
    rows = np.broadcast_to((e.valid & e.mask.any(-1))[:, None], count.shape)
    found = np.median(count[rows])
    if not np.isfinite(found) or np.abs(count[rows] - found).max() > 0.01 * max(found, 1):
        return None
    return round(float(found))


def diluted(site: MutationSite, more: Tensor) -> Tensor:
    """Return weights over what is visible and `more` [B] further scores of 0.

    What nobody has written is of the first document and stands at position 0, and the mask's other
    rules hide it as any key.
    """
    scores = site.seen["attn_scores"].masked_fill(~site.mask[:, None], -torch.inf)
    high = scores.amax(-1, keepdim=True).clamp(min=0)
    terms = (scores - high).exp()
    shown = (site.given["q_segment"] == 0) & (site.given["q_position"] < site.given["window"])
    unwritten = (more[:, None, None] * shown)[:, None]
    return terms / (terms.sum(-1, keepdim=True) + unwritten * (-high).exp())
