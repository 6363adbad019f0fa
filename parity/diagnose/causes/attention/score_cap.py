"""Scores are capped."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.operators import at_tap
from parity.diagnose.solve import solve_cap

CAUSE = Cause(
    id="score-cap",
    title="scores are capped",
    what="Scores are squeezed by a tanh before the mask.",
    why="Gemma 2's soft cap is taken over.",
    sources=(),
    taps=("attn_scores",),
    remedy="Use the scores as they are.",
    rank=3,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose the cap that the largest score tells."""
    scores, right = (np.asarray(t["attn_scores"], np.float64) for t in (e.subject, e.truth))
    cells = np.broadcast_to(e.mask[:, None], scores.shape)
    cap = solve_cap(scores[cells], right[cells])
    if cap is not None:
        facts: Facts = {"effective": f"cap {cap:g}", "configured": "none"}
        yield at_tap(
            e, "score-cap", f"cap {cap:g}", lambda s: cap * (s.value / cap).tanh(), **facts
        )
