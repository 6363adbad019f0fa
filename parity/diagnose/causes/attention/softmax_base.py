"""Softmax to another base."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import MutationSite
from parity.diagnose.operators import at_tap, softmax_over

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
    facts: Facts = {"effective": "base 2", "configured": "base e"}
    yield at_tap(e, "softmax-base", "base 2", base_two, **facts)


def base_two(site: MutationSite) -> Tensor:
    """Return powers of 2."""
    return softmax_over(site.seen["attn_scores"] * math.log(2), site.mask[:, None])
