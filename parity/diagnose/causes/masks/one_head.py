"""Some heads see what is hidden."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from parity.diagnose.cause import Cause, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import MutationSite
from parity.diagnose.operators import at_tap

CAUSE = Cause(
    id="mask-one-head",
    title="some heads see what is hidden",
    what="The mask is obeyed by some heads and not by others.",
    why="A mask of shape [N T S] or [B N T S] is broadcast over the wrong axis.",
    sources=("flax#5591",),
    taps=("attn_probs",),
    remedy="Broadcast one mask over all heads.",
    rank=1,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose that the heads which see hidden keys see all."""
    if "mask" in e.flagged:
        return
    probs = np.asarray(e.subject["attn_probs"], np.float64)
    leaks = ((probs > 0) & ~e.mask[:, None] & e.valid[:, None, :, None]).any(axis=(0, 2, 3))
    if not leaks.any() or leaks.all():
        return
    heads = torch.from_numpy(np.flatnonzero(leaks))

    def open_heads(site: MutationSite) -> Tensor:
        value = site.value.clone()
        value[:, heads] = site.seen["attn_scores"][:, heads].softmax(-1)
        return value

    said = f"heads {', '.join(map(str, heads.tolist()))} without mask"
    yield at_tap(
        e, "mask-one-head", said, open_heads, effective=said, configured="mask in every head"
    )
