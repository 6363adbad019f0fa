"""Rotation pairs neighbouring features."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import MutationSite
from parity.diagnose.operators import rotations, unrotate

CAUSE = Cause(
    id="rope-pairing",
    title="rotation pairs neighbouring features",
    what=(
        "Features 2i and 2i + 1 are rotated against each other, where the weights expect i "
        "and i + H/2 (or the reverse)."
    ),
    why=(
        "Meta's code and the rotary paper pair neighbours; Hugging Face permutes q and k so "
        "that halves pair. Code of one kind meets weights of the other."
    ),
    sources=("llama2.c#286", "nanotron#427", "maxtext#581", "maxtext#1774"),
    taps=("q_rope", "k_rope"),
    remedy=(
        "Rotate halves for weights in Hugging Face's layout; for Meta's, permute q and k or "
        "rotate neighbours."
    ),
    rank=3,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose neighbours, where the subject's tensors fit them."""
    facts: Facts = {"effective": "pairs (2i, 2i + 1)", "configured": "pairs (i, i + H/2)"}
    yield from rotations(e, "rope-pairing", "neighbours rotated", interleaved, **facts)


def interleaved(site: MutationSite) -> Tensor:
    """Rotate features 2i and 2i + 1 against each other."""
    x = unrotate(site)
    halves = torch.cat([x[..., 0::2], x[..., 1::2]], dim=-1)
    a, b = site.reference.rotate(halves, site.cos, site.sin).chunk(2, dim=-1)
    return torch.stack([a, b], dim=-1).flatten(-2)
