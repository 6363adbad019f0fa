"""Queries and keys of the mask are exchanged."""

from __future__ import annotations

from collections.abc import Iterator

from parity.diagnose.cause import Cause, Hypothesis
from parity.diagnose.causes.masks.common import Named, seeing
from parity.diagnose.evidence import Evidence

CAUSE = Cause(
    id="mask-transposed",
    title="queries and keys of the mask are exchanged",
    what="Query i sees the keys that ought to see it.",
    why="An axis of the mask is mistaken: [B S T] for [B T S].",
    sources=("hyunwoongko/transformer#40",),
    taps=("attn_probs", "mask"),
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
    # A mask that hides pads' keys alone has rows of pads, which become columns; by positions, in
    # which pads stand where the first token does.
    at = e.inputs.positions
    away = at[:, :, None] - at[:, None, :]
    by_position = (away >= 0) & (away < (e.inputs.window or away.max(initial=0) + 1)) & real
    if e.inputs.segments is not None:
        by_position &= e.inputs.segments[:, :, None] == e.inputs.segments[:, None, :]
    yield "mask transposed, rows of pads too", by_position.swapaxes(1, 2)
