"""Softmax in too few bits."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from parity.causes.base import Cause, Evidence, Hypothesis
from parity.causes.operators import one, softmax_over
from parity.causes.wrong import Site

CAUSE = Cause(
    id="softmax-precision",
    title="softmax in too few bits",
    what="Scores or weights of the softmax have fewer bits than the run's dtype.",
    why="Scores are left in the activations' dtype.",
    sources=(),
    taps=("attn_probs",),
    remedy="Compute softmax in float32 or wider.",
    rank=7,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose it."""
    if "mask" in e.flagged:
        return
    for name, dtype in DTYPES.items():
        facts = {"effective": name, "configured": "float32 or wider"}
        for inner in (False, True):

            def narrow(site: Site, dtype: torch.dtype = dtype, inner: bool = inner) -> Tensor:
                scores, visible = site.seen["attn_scores"].to(dtype), site.mask[:, None]
                if not inner:
                    scores = scores.to(site.value.dtype)
                return softmax_over(scores, visible).to(site.value.dtype)

            said = f"{'softmax' if inner else 'scores'} in {name}"
            yield one(e, "softmax-precision", said, narrow, **facts)


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
