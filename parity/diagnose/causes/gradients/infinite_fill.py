"""A mask of minus infinity makes gradients NaN."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.causes.gradients.common import ACTIVATIONS, PARAMETERS, spoilt
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import Mutation, MutationSite

CAUSE = Cause(
    id="gradient-infinite-fill",
    title="a row without visible keys gives NaN gradients",
    what=(
        "Hidden scores become minus infinity; where a row has no others, its softmax is NaN, "
        "which a later where hides from the output but not from the gradient."
    ),
    why="The gradient of where is zero times what the other branch has, and zero times NaN is NaN.",
    sources=("transformers#27114", "unsloth#9848"),
    taps=(*ACTIVATIONS, *PARAMETERS),
    remedy="Fill with a finite minimum, or let where choose the scores before the softmax.",
    rank=1,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose it where the gradient is NaN."""
    if spoilt(e):
        facts: Facts = {"effective": "-inf added", "configured": "hidden scores left out"}
        yield Hypothesis(
            CAUSE.id, "-inf on hidden scores", (Mutation("attn_probs", added),), **facts
        )


def added(site: MutationSite) -> Tensor:
    """Return weights of scores to which minus infinity is added, empty rows put right after."""
    visible = site.mask[:, None]
    hidden = torch.zeros(visible.shape, dtype=site.value.dtype).masked_fill(~visible, -torch.inf)
    scores = site.seen["attn_scores"] + hidden
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    probs = weights / weights.sum(-1, keepdim=True)
    return torch.where(visible.any(-1, keepdim=True), probs, torch.zeros_like(probs))
