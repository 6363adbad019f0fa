"""Logits are rounded."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import Tensor

from parity.causes.base import Cause, Evidence, Hypothesis
from parity.causes.narrowing import narrowed
from parity.causes.wrong import Change, Site

CAUSE = Cause(
    id="logits-rounded",
    title="logits are rounded",
    what="Logits have fewer bits than the run's dtype.",
    why="The head's output is cast with everything else.",
    sources=(),
    taps=("logits",),
    remedy="Keep logits in float32 or wider.",
    rank=6,
    rounding=True,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose each dtype."""
    for dtype in ("bfloat16", "float16"):
        change = Change("logits", partial(rounded, dtype), rounds=True)
        facts = {"effective": dtype, "configured": e.lane}
        yield Hypothesis("logits-rounded", f"logits in {dtype}", (change,), **facts)


def rounded(dtype: str, site: Site) -> Tensor:
    """Round logits to a dtype."""
    return narrowed(site, site.value, dtype)
