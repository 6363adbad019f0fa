"""The padding mask is for another layout."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from parity.diagnose.cause import Cause, Hypothesis
from parity.diagnose.causes.masks.common import Named, seeing
from parity.diagnose.evidence import Evidence

CAUSE = Cause(
    id="mask-padding-moved",
    title="the padding mask is for another layout",
    what="Pads at one end are hidden where they stand at the other.",
    why="The mask was made before a step that moved the padding.",
    sources=("transformers#35855",),
    taps=("attn_probs", "mask"),
    remedy="Make the mask after all padding and shifting.",
    rank=2,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose the masks of this kind; the one that the subject's cells show is kept."""
    yield from seeing(e, CAUSE.id, wrong_masks)


def wrong_masks(e: Evidence) -> Iterator[Named]:
    """Yield masks [B T T] with their names."""
    if e.inputs.valid.all():
        return
    lower = np.tril(np.ones_like(e.inputs.mask))
    lengths = e.inputs.valid.sum(1)[:, None]
    columns = np.arange(lower.shape[2])[None, :]
    for said, old in (
        ("right padding hidden", columns < lengths),
        ("left padding hidden", columns >= lower.shape[2] - lengths),
    ):
        yield said, lower & old[:, None, :]
