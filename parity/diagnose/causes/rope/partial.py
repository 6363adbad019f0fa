"""Only part of each head is rotated."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from parity.diagnose.cause import Cause, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import MutationSite
from parity.diagnose.operators import ROTATED, rotations, unrotate
from parity.diagnose.solve import complex_pairs

CAUSE = Cause(
    id="rope-partial",
    title="only part of each head is rotated",
    what="Some pairs of features keep their place whatever the position.",
    why=(
        "GPT-NeoX and Phi rotate a fraction of each head (partial_rotary_factor, rotary_pct); "
        "Llama rotates all of it."
    ),
    sources=("maxtext#4764", "tt-metal#32024"),
    taps=("q_rope", "k_rope"),
    remedy="Rotate all head_dim features.",
    rank=2,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose that just the pairs which moved are rotated."""
    before, after = (
        complex_pairs(e.real(name), "half-split") for name in (ROTATED[e.short], e.short)
    )
    moved = np.abs(after - before).max(axis=(0, 1)) > 0
    if moved.all() or not moved.any():
        return
    turned = torch.from_numpy(moved)

    def partly(site: MutationSite) -> Tensor:
        cos = torch.where(turned, site.cos, torch.ones_like(site.cos))
        sin = torch.where(turned, site.sin, torch.zeros_like(site.sin))
        return site.reference.rotate(unrotate(site), cos, sin)

    said = f"{int(moved.sum())} of {len(moved)} pairs rotated"
    yield from rotations(
        e, "rope-partial", said, partly, effective=said, configured=f"all {len(moved)}"
    )
