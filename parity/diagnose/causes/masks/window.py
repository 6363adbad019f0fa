"""The window is not the scenario's."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from parity.diagnose.cause import Cause, Hypothesis
from parity.diagnose.causes.masks.common import Named, seeing
from parity.diagnose.evidence import Evidence

CAUSE = Cause(
    id="mask-window",
    title="the window is not the scenario's",
    what="Tokens see more or fewer keys back than the window has.",
    why=(
        "Windows are counted with or without the token itself; libraries differ by one. Or "
        "the window is ignored."
    ),
    sources=("transformers#39408", "transformers#26792", "Megatron-Bridge#2656"),
    taps=("attn_probs", "mask"),
    remedy="State whether the window includes the token itself: here it does.",
    rank=3,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose the masks of this kind; the one that the subject's cells show is kept."""
    yield from seeing(e, CAUSE.id, wrong_masks)


def wrong_masks(e: Evidence) -> Iterator[Named]:
    """Yield masks [B T T] with their names."""
    lower = np.tril(np.ones_like(e.inputs.mask))
    real = e.inputs.valid[:, None, :]
    at = np.arange(lower.shape[1])
    for window in range(1, lower.shape[1]):
        if window != e.inputs.window:
            yield f"window {window}", lower & real & (at[:, None] - at < window)[None]
    if e.inputs.window is not None:
        yield "window ignored", lower & real
