"""No causal mask."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from parity.diagnose.cause import Cause, Hypothesis
from parity.diagnose.causes.masks.common import Named, seeing
from parity.diagnose.evidence import Evidence

CAUSE = Cause(
    id="mask-not-causal",
    title="no causal mask",
    what="Tokens see what comes after them.",
    why="The causal flag is off, or the mask holds padding alone.",
    sources=("torch-to-nnef#217",),
    taps=("attn_probs", "mask"),
    remedy="Combine causality with every other mask.",
    rank=1,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose the masks of this kind; the one that the subject's cells show is kept."""
    yield from seeing(e, CAUSE.id, wrong_masks)


def wrong_masks(e: Evidence) -> Iterator[Named]:
    """Yield masks [B T T] with their names."""
    real = e.inputs.valid[:, None, :]
    yield "every real key visible", np.broadcast_to(real, e.inputs.mask.shape)
    yield "every key visible", np.ones_like(e.inputs.mask)
