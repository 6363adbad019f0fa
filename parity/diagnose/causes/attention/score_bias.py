"""Scores carry a bias by distance."""

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
    id="score-bias",
    title="scores carry a bias by distance",
    what="Scores fall with the distance between query and key.",
    why="ALiBi is taken over, or a positional bias is given beside rotary positions.",
    sources=(),
    taps=("attn_scores",),
    remedy="Use no bias: positions enter by rotation alone.",
    rank=5,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose the slope, in columns, that each head's scores tell."""
    scores, right = (np.asarray(t["attn_scores"], np.float64) for t in (e.subject, e.truth))
    away = np.arange(e.columns.start, e.columns.stop)[:, None] - np.arange(e.columns.stop)
    gap = np.where(e.mask[:, None], scores - right, 0.0)
    cells = e.mask[:, None] * away**2
    slopes = (gap * away).sum((0, 2, 3)) / max(cells.sum(), 1)
    told = torch.from_numpy(slopes.round(12))[None, :, None, None]
    distance = torch.from_numpy(away.copy())

    def biased(site: MutationSite) -> Tensor:
        if site.value.shape[-2:] != distance.shape:
            return site.value
        return site.value + told * distance

    said = f"bias of {slopes[0]:.4g} per token in head 0"
    yield at_tap(e, "score-bias", said, biased, effective=said, configured="none")
