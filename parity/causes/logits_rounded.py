"""Logits are rounded."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from parity.causes.base import Cause, Evidence, Hypothesis
from parity.causes.operators import Value, one

CAUSE = Cause(
    id="logits-rounded",
    title="logits are rounded",
    what="Logits have fewer bits than the run's dtype.",
    why="The head's output is cast with everything else.",
    sources=(),
    taps=("logits",),
    remedy="Keep logits in float32 or wider.",
    rank=6,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose each dtype."""
    for name, dtype in (("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        facts = {"effective": name, "configured": e.lane}
        yield one(e, "logits-rounded", f"logits in {name}", rounded(dtype), **facts)


def rounded(dtype: torch.dtype) -> Value:
    """Return a rounding through a dtype."""
    return lambda site: site.value.to(dtype).to(site.value.dtype)
