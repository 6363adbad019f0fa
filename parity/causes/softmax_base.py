"""Softmax to another base."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from parity.causes.base import Cause, Evidence, Hypothesis
from parity.causes.operators import one, softmax_over
from parity.causes.wrong import Site

CAUSE = Cause(
    id="softmax-base",
    title="softmax to another base",
    what="Weights are powers of 2 of the scores.",
    why="A kernel computes exp2 and its scores lack the factor log2(e).",
    sources=(),
    taps=("attn_probs",),
    remedy="Multiply scores by log2(e) before exp2.",
    rank=3,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose it."""
    if "mask" in e.flagged:
        return
    facts = {"effective": "base 2", "configured": "base e"}
    yield one(e, "softmax-base", "base 2", base_two, **facts)


def base_two(site: Site) -> Tensor:
    """Return powers of 2."""
    return softmax_over(site.seen["attn_scores"] * math.log(2), site.mask[:, None])
