"""A row that sees nothing gives NaN."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import Mutation, MutationSite

CAUSE = Cause(
    id="mask-empty-row",
    title="a row that sees nothing gives NaN",
    what=(
        "A query without visible keys gets NaN, which spreads through the values of later layers."
    ),
    why=(
        "Every score of the row is -inf: a fill overflows, or two saturated planes are added. "
        "Softmax of it is 0 / 0."
    ),
    sources=("transformers#27114", "Automodel#2658", "unsloth#9848"),
    taps=("attn_probs", "attn_context"),
    remedy=(
        "Give rows without visible keys zeros (`where(mask, scores, min)`), and let pads see "
        "themselves or nothing by a declared policy."
    ),
    rank=0,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose -inf filled in, or added, in all layers or in one before."""
    if not any(np.isnan(e.subject[name]).any() for name in ("attn_probs", "attn_context")):
        return
    assert e.layer is not None
    facts: Facts = {"effective": "NaN", "configured": "zeros"}
    seen = e.inputs.mask if e.observed_mask is None else e.observed_mask
    obeyed = np.where(e.inputs.valid[:, :, None], e.inputs.mask, seen)
    # As it was meant, nothing is read off this scenario, and the others can bear it out.
    mask = None if np.array_equal(obeyed, e.inputs.mask) else obeyed
    for said, wrong in (("-inf added to scores", added), ("scores filled with -inf", filled)):
        for layers in (None, frozenset({e.layer}), frozenset({e.layer - 1})):
            change = Mutation("attn_probs", wrong, layers)
            where = "" if layers is None else f" in layer {min(layers)}"
            yield Hypothesis("mask-empty-row", said + where, (change,), mask=mask, **facts)


def added(site: MutationSite) -> Tensor:
    """Add -inf to hidden scores, whatever they are."""
    bias = torch.zeros(site.mask.shape, dtype=site.value.dtype).masked_fill(~site.mask, -torch.inf)
    return (site.seen["attn_scores"] + bias[:, None]).softmax(-1)


def filled(site: MutationSite) -> Tensor:
    """Put -inf in the place of hidden scores."""
    return site.seen["attn_scores"].masked_fill(~site.mask[:, None], -torch.inf).softmax(-1)
