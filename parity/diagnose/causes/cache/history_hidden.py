"""With a cache, the history is hidden."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from parity.diagnose.cause import Cause, Hypothesis
from parity.diagnose.causes.masks.common import Named, seeing
from parity.diagnose.evidence import Evidence

CAUSE = Cause(
    id="cache-history-hidden",
    title="with a cache, the history is hidden",
    what="Queries see the tokens of their own call alone.",
    why=(
        "A square mask of the call is used, or padded with hidden cells, where it ought to "
        "cover the cache too."
    ),
    sources=("llama#899", "hyprstream#1521", "vmlx-swift#185"),
    taps=("attn_probs",),
    remedy="Make the mask [T, past + T].",
    rank=2,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose the masks of this kind; the one that the subject's cells show is kept."""
    yield from seeing(e, CAUSE.id, wrong_masks)


def wrong_masks(e: Evidence) -> Iterator[Named]:
    """Yield masks [B T T] with their names."""
    if e.chunks is None:
        return
    own = np.zeros(e.inputs.mask.shape[1:], bool)
    singles = np.ones_like(own)
    stop = 0
    for size in e.chunks:
        start, stop = stop, stop + size
        own[start:stop, start:stop] = True
        if size == 1:
            singles[start:stop] = False
            singles[start:stop, start:stop] = True
    yield "a call sees itself alone", e.inputs.mask & own
    yield "a single token sees itself alone", e.inputs.mask & singles
