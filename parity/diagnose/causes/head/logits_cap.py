"""Logits are capped."""

from __future__ import annotations

from collections.abc import Iterator

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.operators import at_tap, true_output
from parity.diagnose.solve import solve_cap

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
        facts: Facts = {"effective": f"cap {cap:g}", "configured": "none"}
        yield at_tap(
            e, "logits-cap", f"cap {cap:g}", lambda s: cap * (s.value / cap).tanh(), **facts
        )
