"""Padding is ignored."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from parity.diagnose.cause import Cause, Hypothesis
from parity.diagnose.causes.masks.common import Named, seeing
from parity.diagnose.evidence import Evidence
from parity.inputs import visible_keys

CAUSE = Cause(
    id="mask-padding-ignored",
    title="padding is ignored",
    what="Real tokens see pads.",
    why="The padding mask is not passed on, or masks queries where it ought to mask keys.",
    sources=("maxtext#913", "maxtext#4016", "mlx-lm#1906", "hyunwoongko/transformer#40"),
    taps=("attn_probs", "mask"),
    remedy="Hide pad keys from every query, as the last step.",
    rank=1,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose the masks of this kind; the one that the subject's cells show is kept."""
    yield from seeing(e, CAUSE.id, wrong_masks)


def wrong_masks(e: Evidence) -> Iterator[Named]:
    """Yield masks [B T T] with their names."""
    unpadded = visible_keys(np.ones_like(e.inputs.valid), e.inputs.segments, e.inputs.window)
    yield "pads visible", unpadded
    yield "padding on the query axis", unpadded & e.inputs.valid[:, :, None]
