"""The gradient ends where it should go on."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.causes.gradients.common import (
    ACTIVATIONS,
    PARAMETERS,
    forward_tap,
    multiple,
    parameter,
)
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import Mutation, stop_gradient
from parity.diagnose.operators import map_weight

CAUSE = Cause(
    id="gradient-stopped",
    title="the gradient ends here",
    what="The gradient at the tap is zero: what is computed of it counts as a constant.",
    why=(
        "A stop_gradient or detach is left in the code, a value passes through a host or "
        "integer type, or a parameter is filtered out of what is differentiated."
    ),
    sources=(),
    taps=(*ACTIVATIONS, *PARAMETERS),
    remedy="Take the stop_gradient out, or let the optimizer's filter include the parameter.",
    rank=2,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose it where the gradient is zero: of a parameter alone, or with what it multiplies."""
    found = multiple(e)
    if found is None or found.factor or found.rest:
        return
    facts: Facts = {"effective": "gradient 0", "configured": "what autograd gives"}
    facts["left"] = 0.0
    tap = forward_tap(e)
    if e.short in ACTIVATIONS:
        change = Mutation(tap, pulled=torch.zeros_like)
        yield Hypothesis(CAUSE.id, f"no gradient into {tap}", (change,), **facts)
        return
    frozen = map_weight(parameter(e), stop_gradient)
    yield Hypothesis(CAUSE.id, f"no gradient into {parameter(e)}", (frozen,), **facts)
    detached = Mutation(tap, lambda site: stop_gradient(site.value))
    yield Hypothesis(CAUSE.id, f"no gradient through {tap}", (detached,), **facts)
