"""A prefix sees itself in both directions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from parity.diagnose.cause import Cause, Hypothesis
from parity.diagnose.causes.masks.common import Named, seeing
from parity.diagnose.evidence import Evidence

CAUSE = Cause(
    id="mask-prefix",
    title="a prefix sees itself in both directions",
    what="The first tokens see each other, later ones too.",
    why="A prefix-LM mask is used for a causal model.",
    sources=(),
    taps=("attn_probs", "mask"),
    remedy="Use a causal mask from the first token.",
    rank=5,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose the masks of this kind; the one that the subject's cells show is kept."""
    yield from seeing(e, CAUSE.id, wrong_masks)


def wrong_masks(e: Evidence) -> Iterator[Named]:
    """Yield masks [B T T] with their names."""
    real = e.inputs.valid[:, None, :]
    columns = np.arange(e.inputs.mask.shape[1])
    for prefix in range(2, len(columns)):
        opened = e.inputs.mask | (columns < prefix)[None, None, :]
        yield f"prefix of {prefix} open", opened & real
