"""The softmax's backward pass lacks a term."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.causes.gradients.common import gradient_taps
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import Mutation, MutationSite, with_gradient

CAUSE = Cause(
    id="gradient-softmax",
    title="the softmax's gradient lacks its row sum",
    what=(
        "Scores get the weights times the weights' gradients; the row's sum of these products "
        "is not taken off."
    ),
    why=(
        "A fused attention's backward pass needs that sum (delta) as an array of its own, "
        "computed before, and it is left out, stale or of another row."
    ),
    sources=(),
    taps=gradient_taps("attn_scores", "k_rope", "q_rope"),
    remedy=(
        "The gradient in the scores is p (g - sum(p g)): check delta, and that it is that of "
        "the same row."
    ),
    rank=3,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose it."""
    facts: Facts = {"effective": "p g", "configured": "p (g - sum(p g))"}
    change = Mutation("attn_probs", without_row_sum)
    yield Hypothesis(CAUSE.id, "no row sum in the softmax's gradient", (change,), **facts)


def without_row_sum(site: MutationSite) -> Tensor:
    """Return the weights, differentiated so."""
    probs = site.value.detach()
    return with_gradient(site.seen["attn_scores"], lambda _: probs.clone(), lambda g: probs * g)
