"""The causal mask hides the diagonal."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from parity.diagnose.cause import Cause, Hypothesis
from parity.diagnose.causes.masks.common import Named, seeing
from parity.diagnose.evidence import Evidence

CAUSE = Cause(
    id="mask-strict",
    title="the causal mask hides the diagonal",
    what="Tokens do not see themselves.",
    why="A strict comparison (j < i), or a triangle of the wrong diagonal.",
    sources=("mobius#365",),
    taps=("attn_probs", "mask"),
    remedy="Let token i see keys j <= i.",
    rank=1,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose the masks of this kind; the one that the subject's cells show is kept."""
    yield from seeing(e, CAUSE.id, wrong_masks)


def wrong_masks(e: Evidence) -> Iterator[Named]:
    """Yield masks [B T T] with their names."""
    lower = np.tril(np.ones_like(e.inputs.mask))
    yield "keys j < i visible", e.inputs.mask & ~np.eye(lower.shape[1], dtype=bool)
    yield "keys j < i visible, pads too", np.tril(np.ones_like(lower), -1)
