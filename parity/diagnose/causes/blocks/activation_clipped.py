"""Activations are clipped."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import MutationSite
from parity.diagnose.operators import at_tap

CAUSE = Cause(
    id="activation-clipped",
    title="activations are clipped",
    what="Values beyond a limit are cut off.",
    why="A clamp against overflow of float16, or of a quantiser, is left in.",
    sources=(),
    taps=("mlp_act",),
    remedy="Remove the clamp, or compute in a wider dtype.",
    rank=5,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose the largest value seen as the limit."""
    limit = float(np.abs(e.real("mlp_act")).max())
    facts: Facts = {"effective": f"limit {limit:g}", "configured": "none"}

    def clipped(site: MutationSite) -> Tensor:
        return site.value.clamp(-limit, limit)

    yield at_tap(e, "activation-clipped", f"limit {limit:g}", clipped, **facts)
