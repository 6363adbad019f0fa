"""The causal mask is aligned top left."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from parity.diagnose.cause import Cause, Hypothesis
from parity.diagnose.causes.masks.common import Named, seeing
from parity.diagnose.evidence import Evidence

CAUSE = Cause(
    id="mask-top-left",
    title="the causal mask is aligned top left",
    what="With a cache, the first query of a call sees the first key alone.",
    why="A triangle over [T S] counts queries from 0, though S keys precede them.",
    sources=("pytorch#103082", "pytorch#108108", "flax#5591"),
    taps=("attn_probs", "mask"),
    remedy="Align to the last key, or compare positions.",
    rank=2,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose the masks of this kind; the one that the subject's cells show is kept."""
    yield from seeing(e, CAUSE.id, wrong_masks)


def wrong_masks(e: Evidence) -> Iterator[Named]:
    """Yield masks [B T T] with their names."""
    if e.chunks is None:
        return
    real = e.inputs.valid[:, None, :]
    mask = np.zeros_like(e.inputs.mask)
    by_slot = np.zeros_like(e.inputs.mask)
    slots = np.cumsum(e.inputs.valid, axis=1) - 1
    stop = 0
    for size in e.chunks:
        start, stop = stop, stop + size
        rows = np.arange(size)
        mask[:, start:stop] = np.arange(mask.shape[2])[None, None, :] <= rows[None, :, None]
        by_slot[:, start:stop] = slots[:, None, :] <= rows[None, :, None]
        by_slot[:, start:stop, stop:] = False
    yield "queries counted from 0 in each call", mask & real
    yield "queries counted from 0 in each call, keys by slot", by_slot & real
