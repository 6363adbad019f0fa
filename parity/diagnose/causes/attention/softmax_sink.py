"""Softmax has a sink."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import MutationSite
from parity.diagnose.operators import at_tap

CAUSE = Cause(
    id="softmax-sink",
    title="softmax has a sink",
    what="Every row's sum of exponentials has one more term: weights add up to less than 1.",
    why="Softmax-off-by-one, or an attention sink, is used.",
    sources=(),
    taps=("attn_probs",),
    remedy="Use a plain softmax.",
    rank=3,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose it."""
    if "mask" in e.flagged:
        return
    facts: Facts = {"effective": "exp / (1 + sum)", "configured": "exp / sum"}
    yield at_tap(e, "softmax-sink", "1 added to the sum", sink, **facts)


def sink(site: MutationSite) -> Tensor:
    """Add a score of 0 that carries no value."""
    scores = site.seen["attn_scores"].masked_fill(~site.mask[:, None], -torch.inf)
    padded = torch.nn.functional.pad(scores, (0, 1)).softmax(-1)[..., :-1]
    return padded.masked_fill(~site.mask[:, None], 0)
