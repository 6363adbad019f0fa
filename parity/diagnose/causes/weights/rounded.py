"""Weights are rounded on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import Mutation
from parity.diagnose.operators import WEIGHTED, map_weight, weight_name

CAUSE = Cause(
    id="weight-rounded",
    title="weights are rounded on the way",
    what=(
        "Weights have fewer bits than the checkpoint: they went through float16, bfloat16 or int8."
    ),
    why=(
        "A converter's intermediate dtype is narrower than the file's; float16 also overflows "
        "and underflows."
    ),
    sources=("maxtext hf_checkpoint_conversion_checker",),
    taps=WEIGHTED,
    remedy="Convert in the file's own dtype, and compare checksums afterwards.",
    rank=5,
    rounding=True,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose each dtype, for every weight and for this one."""
    name = weight_name(e.short, e.layer, e.config)
    for dtype, rounded in ROUNDINGS.items():
        facts: Facts = {"effective": dtype, "configured": "as stored"}
        said = f"weights rounded through {dtype}"

        def weight(
            asked: str, read: Callable[[str], Tensor], rounded: Round = rounded
        ) -> Tensor | None:
            return rounded(read(asked))

        if dtype != "int8":
            yield Hypothesis("weight-rounded", said, (Mutation(weight=weight),), **facts)
        yield Hypothesis(
            "weight-rounded",
            f"{name} rounded through {dtype}",
            (map_weight(name, rounded),),
            **facts,
        )


Round = Callable[[Tensor], Tensor]


def int8(w: Tensor) -> Tensor:
    """Round each row to 127 steps of its largest element."""
    step = w.abs().amax(-1, keepdim=True) / 127
    return (w / step).round() * step


ROUNDINGS: dict[str, Round] = {
    "float16": lambda w: w.half().to(w.dtype),
    "bfloat16": lambda w: w.bfloat16().to(w.dtype),
    "int8": int8,
}
