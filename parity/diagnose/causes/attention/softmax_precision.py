"""Softmax in too few bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import Mutation, MutationSite
from parity.diagnose.operators import softmax_over
from parity.diagnose.rounding import NUDGE, ROUNDINGS, UNITS, has_bits, narrow, narrower

CAUSE = Cause(
    id="softmax-precision",
    title="softmax in too few bits",
    what="Scores, exponentials or weights of the softmax have fewer bits than the run's dtype.",
    why="Scores are left in the activations' dtype.",
    sources=(),
    taps=("attn_probs",),
    remedy="Compute softmax in float32 or wider.",
    rank=7,
    rounding=True,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose each dtype, for the whole softmax and for what goes in."""
    if "mask" in e.flagged:
        return
    for dtype in narrower(e.lane):
        facts: Facts = {"effective": dtype, "configured": "the run's, at least float32"}
        if dtype == "float32" and has_bits(np.asarray(e.subject["attn_probs"]), ROUNDINGS[dtype]):
            # Libraries' exponentials agree to this; that every weight is a float32 tells the rest.
            facts["noise"] = NUDGE * UNITS[dtype]
        for said, way in WAYS.items():

            def narrow(site: MutationSite, dtype: str = dtype, way: Way = way) -> Tensor:
                return way(site, dtype).to(site.value.dtype)

            change = Mutation("attn_probs", narrow, rounds=True)
            yield Hypothesis("softmax-precision", f"{said} in {dtype}", (change,), **facts)


Way = Callable[[MutationSite, str], Tensor]


def whole(site: MutationSite, dtype: str) -> Tensor:
    """Round after every operation: less the largest, exponential, sum, quotient.

    Exponentials differ between libraries in float32's last places, which decides ties of 16 bits.
    """

    def r(x: Tensor) -> Tensor:
        return narrow(site, x, dtype, unit=0.0 if dtype == "float32" else UNITS["float32"])

    visible = site.mask[:, None]
    s = r(site.seen["attn_scores"]).masked_fill(~visible, -torch.inf)
    high = s.amax(-1, keepdim=True)
    terms = r(r(s - high.masked_fill(high.isinf(), 0)).exp())
    if dtype == "float32":  # sums in float32 round at every step: in another order, otherwise
        turned = site.reference.variant == "reordered"
        total = (terms.flip(-1) if turned else terms).float().cumsum(-1)[..., -1:].to(terms.dtype)
    else:
        total = r(terms.sum(-1, keepdim=True))
    return r(terms / total.masked_fill(total == 0, 1))


def entering(site: MutationSite, dtype: str) -> Tensor:
    """Round what goes in."""
    return softmax_over(narrow(site, site.seen["attn_scores"], dtype), site.mask[:, None])


def leaving(site: MutationSite, dtype: str) -> Tensor:
    """Round what comes out."""
    return narrow(site, softmax_over(site.seen["attn_scores"], site.mask[:, None]), dtype)


def throughout(site: MutationSite, dtype: str) -> Tensor:
    """Round what goes in and what comes out; in between are more bits."""
    entered = narrow(site, site.seen["attn_scores"], dtype)
    unit = UNITS["float32"]
    return narrow(site, softmax_over(entered, site.mask[:, None]), dtype, unit)


WAYS: dict[str, Way] = {
    "every step of softmax": whole,
    "scores and weights": throughout,
    "scores": entering,
    "weights": leaving,
}
