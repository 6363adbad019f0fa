"""A key is hidden from later tokens."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from parity.diagnose.cause import Cause, Hypothesis
from parity.diagnose.causes.masks.common import Named, seeing
from parity.diagnose.evidence import Evidence

CAUSE = Cause(
    id="mask-key-hidden",
    title="a key is hidden from later tokens",
    what="One column of the mask is empty below its diagonal.",
    why=("A mask made from token ids hides a real token that equals the pad or the start token."),
    sources=("transformers#23530",),
    taps=("attn_probs", "mask"),
    remedy="Make padding masks from lengths, never from ids.",
    rank=5,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose the masks of this kind; the one that the subject's cells show is kept."""
    yield from seeing(e, CAUSE.id, wrong_masks)


def wrong_masks(e: Evidence) -> Iterator[Named]:
    """Yield masks [B T T] with their names."""
    eye = np.eye(e.inputs.mask.shape[1], dtype=bool)
    for key in range(eye.shape[0]):
        yield f"key {key} hidden", e.inputs.mask & ((np.arange(len(eye)) != key) | eye)[None]
