"""Queries and keys of the mask are exchanged."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from parity.diagnose.cause import Cause, Hypothesis
from parity.diagnose.causes.masks.common import Named, seeing
from parity.diagnose.evidence import Evidence
from parity.inputs import visible_keys

CAUSE = Cause(
    id="mask-transposed",
    title="queries and keys of the mask are exchanged",
    what="Query i sees the keys that ought to see it.",
    why="An axis of the mask is mistaken: [B S T] for [B T S].",
    sources=("hyunwoongko/transformer#40",),
    taps=("attn_probs",),
    remedy="Keep the layout [B T S], queries before keys.",
    rank=2,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose the masks of this kind; the one that the subject's cells show is kept."""
    yield from seeing(e, CAUSE.id, wrong_masks)


def wrong_masks(e: Evidence) -> Iterator[Named]:
    """Yield masks [B T T] with their names."""
    yield "mask transposed", e.inputs.mask.swapaxes(1, 2)
    real = e.inputs.valid[:, None, :]
    yield "mask transposed, pads hidden", e.inputs.mask.swapaxes(1, 2) & real
    # A mask that hides pads' keys alone has rows of pads, which become columns.
    unpadded = visible_keys(np.ones_like(e.inputs.valid), e.inputs.segments, e.inputs.window)
    yield "mask transposed, rows of pads too", (unpadded & real).swapaxes(1, 2)
