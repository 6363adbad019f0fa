"""The causal mask is off by one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from parity.diagnose.cause import Cause, Hypothesis
from parity.diagnose.causes.masks.common import Named, seeing
from parity.diagnose.evidence import Evidence

CAUSE = Cause(
    id="mask-off-by-one",
    title="the causal mask is off by one",
    what="Tokens see the next token, too.",
    why="A triangle of the wrong diagonal (k=1 hides the diagonal above, not the one meant).",
    sources=("torch-to-nnef#217", "mobius#365"),
    taps=("attn_probs", "mask"),
    remedy="Let token i see keys j <= i.",
    rank=1,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose the masks of this kind; the one that the subject's cells show is kept."""
    yield from seeing(e, CAUSE.id, wrong_masks)


def wrong_masks(e: Evidence) -> Iterator[Named]:
    """Yield masks [B T T] with their names."""
    real = e.inputs.valid[:, None, :]
    shifted = np.tril(np.ones_like(e.inputs.mask), 1)
    yield "keys j <= i + 1 visible", shifted & real
    yield "keys j <= i + 1 visible, pads too", shifted
