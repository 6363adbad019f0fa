"""Attention is cut in blocks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from parity.diagnose.cause import Cause, Hypothesis
from parity.diagnose.causes.masks.common import Named, seeing
from parity.diagnose.evidence import Evidence

CAUSE = Cause(
    id="mask-chunked",
    title="attention is cut in blocks",
    what="Tokens see their own block alone.",
    why="Chunked attention, or a window rounded to blocks, is used.",
    sources=(),
    taps=("attn_probs", "mask"),
    remedy="Use a causal mask over all keys.",
    rank=5,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose the masks of this kind; the one that the subject's cells show is kept."""
    yield from seeing(e, CAUSE.id, wrong_masks)


def wrong_masks(e: Evidence) -> Iterator[Named]:
    """Yield masks [B T T] with their names."""
    columns = np.arange(e.inputs.mask.shape[1])
    for size in range(2, len(columns)):
        block = columns // size
        yield f"blocks of {size}", e.inputs.mask & (block[:, None] == block)[None]
