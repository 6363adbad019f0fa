"""Scores carry another scale."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.operators import at_tap
from parity.diagnose.solve import score_scale

CAUSE = Cause(
    id="score-scale",
    title="scores carry another scale",
    what="Products of queries and keys are multiplied by another number than head_dim ** -0.5.",
    why=(
        "The model dim or the number of heads is taken, the scale is applied twice (in q and "
        "in the kernel), or not at all."
    ),
    sources=("ng-video-lecture#6",),
    taps=("attn_scores",),
    remedy="Scale once, by head_dim ** -0.5.",
    rank=2,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose the factor between the subject's scores and the reference's."""
    scores, right = (np.asarray(t["attn_scores"], np.float64) for t in (e.subject, e.truth))
    cells = np.broadcast_to(e.mask[:, None], scores.shape)
    factor, left = score_scale(scores[cells], right[cells])
    if left > 1e-3 or not np.isfinite(factor):
        return
    scale = e.reference.scale()
    used, D = factor * scale, e.config.hidden_size
    known = {"model dim ** -0.5": D**-0.5, "scale ** 2": scale**2, "no scale": 1.0}
    name = next((f" ({n})" for n, v in known.items() if abs(v / used - 1) < 1e-6), "")
    facts: Facts = {"effective": f"{used:.6g}{name}", "configured": f"{scale:.6g}"}
    said = f"scale={used:.6g}{name}"
    yield at_tap(e, "score-scale", said, lambda site: site.value * factor, **facts)
