"""The mask is inverted."""

from __future__ import annotations

from collections.abc import Iterator

from parity.diagnose.cause import Cause, Hypothesis
from parity.diagnose.causes.masks.common import Named, seeing
from parity.diagnose.evidence import Evidence

CAUSE = Cause(
    id="mask-inverted",
    title="the mask is inverted",
    what="What is to be hidden is visible and the reverse.",
    why=(
        "True means hidden in one library and visible in another; an additive 0/-inf array "
        "taken as booleans is exactly inverted."
    ),
    sources=("x-transformers#160", "LLMs-from-scratch#1061", "transformers#38094"),
    taps=("attn_probs", "mask"),
    remedy="State the meaning of True where the mask is made, and convert once.",
    rank=1,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose the masks of this kind; the one that the subject's cells show is kept."""
    yield from seeing(e, CAUSE.id, wrong_masks)


def wrong_masks(e: Evidence) -> Iterator[Named]:
    """Yield masks [B T T] with their names."""
    yield "mask inverted", ~e.inputs.mask
    real = e.inputs.valid[:, None, :]
    yield "mask inverted, pads hidden", ~e.inputs.mask & real
