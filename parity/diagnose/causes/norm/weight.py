"""A norm's weight is not applied as stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import Mutation
from parity.diagnose.operators import NORMS, map_weight, weight_name

CAUSE = Cause(
    id="norm-weight",
    title="a norm's weight is not applied as stored",
    what="The normalised vector is left as it is, or multiplied by the weight plus one.",
    why=(
        "A tensor is missing and its initial ones are left, a flag turns weights off, or "
        "Gemma's convention (1 + w) is taken over."
    ),
    sources=(),
    taps=NORMS,
    remedy="Multiply by the stored weight; refuse a checkpoint that lacks it.",
    rank=3,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose no weight, then the weight plus one."""
    name = weight_name(e.short, e.layer, e.config)
    for said, wrong in (("weight 1", torch.ones_like), ("weight w + 1", plus_one)):
        facts: Facts = {"effective": said, "configured": "weight w"}
        yield Hypothesis("norm-weight", f"{said} in {name}", (map_weight(name, wrong),), **facts)
        yield Hypothesis("norm-weight", f"{said} in every norm", (every(wrong),), **facts)


def plus_one(weight: Tensor) -> Tensor:
    """Return Gemma's factor."""
    return weight.double() + 1


def every(wrong: Callable[[Tensor], Tensor]) -> Mutation:
    """Return a change of all norms' weights."""

    def weight(name: str, read: Callable[[str], Tensor]) -> Tensor | None:
        return wrong(read(name)) if "norm" in name else None

    return Mutation(weight=weight)
