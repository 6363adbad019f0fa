"""A gradient is multiplied by a constant."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.causes.gradients.common import (
    ACTIVATIONS,
    PARAMETERS,
    forward_tap,
    multiple,
    parameter,
)
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import Mutation, change_gradient
from parity.diagnose.operators import map_weight

CAUSE = Cause(
    id="gradient-scaled",
    title="the gradient is multiplied by a constant",
    what="The gradient at the tap is the right one times a number.",
    why=(
        "A hand-written backward pass leaves a scale out or applies it twice, a mean stands for "
        "a sum over devices, or a gradient is clipped on its way."
    ),
    sources=(),
    taps=(*ACTIVATIONS, *PARAMETERS),
    remedy="Compare the operator's own backward pass with autograd's; look for the number.",
    rank=6,
)

# Of the difference, this much may be left unexplained.
CLOSE = 1e-2


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose the number, where one explains the whole gradient."""
    found = multiple(e)
    if found is None or not found.factor or found.rest > CLOSE * abs(found.factor - 1):
        return
    factor = found.factor
    facts: Facts = {"effective": f"factor {factor:.6g}", "configured": "1"}
    facts["left"] = found.rest
    tap, times = forward_tap(e), f"times {factor:.6g}"

    def change(gradient: Tensor) -> Tensor:
        return gradient * factor

    if e.short in ACTIVATIONS:
        into = Mutation(tap, pulled=change)
        yield Hypothesis(CAUSE.id, f"gradient into {tap} {times}", (into,), **facts)
        return
    name = parameter(e)
    of_weight = map_weight(name, lambda weight: change_gradient(weight, change))
    yield Hypothesis(CAUSE.id, f"gradient of {name} {times}", (of_weight,), **facts)
    through = Mutation(tap, lambda site: change_gradient(site.value, change))
    yield Hypothesis(CAUSE.id, f"gradient through {tap} {times}", (through,), **facts)
