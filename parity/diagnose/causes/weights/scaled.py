"""A weight carries another factor."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import Mutation
from parity.diagnose.operators import LINEARS, linear_case, map_weight, true_output

CAUSE = Cause(
    id="weight-scaled",
    title="a weight carries another factor",
    what="A weight is a multiple of the stored one.",
    why="A scale (of scores, of an adapter) was folded into the weight, and is applied again.",
    sources=("ng-video-lecture#6",),
    taps=LINEARS,
    remedy="Store weights raw; apply every scale in one place.",
    rank=3,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose the factor between the subject's output and the reference's."""
    _, y, name = linear_case(e)
    right = true_output(e)
    factor = float((y * right).sum() / (right * right).sum())
    factor = float(f"{factor:.6g}")
    if factor in (0.0, 1.0) or e.short == "logits":
        return
    facts: Facts = {"effective": f"{factor:g} W", "configured": "W"}
    module = name.split(".", 3)[-1]

    def every(asked: str, read: Callable[[str], Tensor]) -> Tensor | None:
        return factor * read(asked) if asked.endswith(module) else None

    yield Hypothesis(
        "weight-scaled",
        f"{module} times {factor:g} in every layer",
        (Mutation(weight=every),),
        **facts,
    )
    change = map_weight(name, lambda w: factor * w)
    yield Hypothesis("weight-scaled", f"{name} times {factor:g}", (change,), **facts)
