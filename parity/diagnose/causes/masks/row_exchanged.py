"""A row has another row's padding mask."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from parity.diagnose.cause import Cause, Hypothesis
from parity.diagnose.causes.masks.common import Named, seeing
from parity.diagnose.evidence import Evidence

CAUSE = Cause(
    id="mask-row-exchanged",
    title="a row has another row's padding mask",
    what="Rows of a batch are masked by each other's lengths.",
    why="A batch is sorted or sharded, its mask is not.",
    sources=(),
    taps=("attn_probs", "mask"),
    remedy="Move tokens and masks together.",
    rank=3,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose the masks of this kind; the one that the subject's cells show is kept."""
    yield from seeing(e, CAUSE.id, wrong_masks)


def wrong_masks(e: Evidence) -> Iterator[Named]:
    """Yield masks [B T T] with their names."""
    if e.inputs.valid.all():
        return
    lower = np.tril(np.ones_like(e.inputs.mask))
    for by in range(1, len(lower)):
        yield f"rows moved by {by}", lower & np.roll(e.inputs.valid, by, axis=0)[:, None, :]
