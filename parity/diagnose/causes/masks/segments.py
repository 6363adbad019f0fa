"""Packed documents see each other."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from parity.diagnose.cause import Cause, Hypothesis
from parity.diagnose.causes.masks.common import Named, seeing
from parity.diagnose.evidence import Evidence

CAUSE = Cause(
    id="mask-segments",
    title="packed documents see each other",
    what="Tokens see the documents before theirs in a packed row.",
    why="Packing concatenates documents and the mask is merely causal.",
    sources=("axolotl#3796", "nanoVLM#204", "maxtext#4476"),
    taps=("attn_probs", "mask"),
    remedy="AND the mask with equality of document numbers.",
    rank=1,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose the masks of this kind; the one that the subject's cells show is kept."""
    yield from seeing(e, CAUSE.id, wrong_masks)


def wrong_masks(e: Evidence) -> Iterator[Named]:
    """Yield masks [B T T] with their names."""
    lower = np.tril(np.ones_like(e.inputs.mask))
    real = e.inputs.valid[:, None, :]
    if e.inputs.segments is not None:
        yield "documents of a row see each other", lower & real
