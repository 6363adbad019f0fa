"""Logits are capped."""

from __future__ import annotations

from collections.abc import Iterator

from parity.causes.base import Cause, Evidence, Hypothesis
from parity.causes.operators import one, true_output
from parity.identify import solve_cap

CAUSE = Cause(
    id="logits-cap",
    title="logits are capped",
    what="Logits are squeezed by a tanh.",
    why="Gemma 2's soft cap is taken over.",
    sources=(),
    taps=("logits",),
    remedy="Use the logits as they are.",
    rank=3,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose the cap that the largest logit tells."""
    cap = solve_cap(e.real("logits").ravel(), true_output(e).ravel())
    if cap is not None:
        facts = {"effective": f"cap {cap:g}", "configured": "none"}
        yield one(e, "logits-cap", f"cap {cap:g}", lambda s: cap * (s.value / cap).tanh(), **facts)
