"""Logits are rounded."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import Mutation, MutationSite
from parity.diagnose.rounding import narrow

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
        change = Mutation("logits", partial(rounded, dtype), rounds=True)
        facts: Facts = {"effective": dtype, "configured": e.lane}
        yield Hypothesis("logits-rounded", f"logits in {dtype}", (change,), **facts)


def rounded(dtype: str, site: MutationSite) -> Tensor:
    """Round logits to a dtype."""
    return narrow(site, site.value, dtype)
