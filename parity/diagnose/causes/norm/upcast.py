"""A norm works in the activations' dtype."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import MutationSite
from parity.diagnose.operators import NORMS, norm_input, norm_weight, norms

CAUSE = Cause(
    id="norm-upcast",
    title="a norm works in the activations' dtype",
    what="Squares, their sum or the root are taken in 16 bits, in place of float32.",
    why=(
        "The upcast around the norm is lost. A bfloat16 sum stops growing where its terms fall "
        "under half its last place, 1/256 of it: from some hundred features on, a norm too small."
    ),
    sources=("lightning-thunder#1713", "EasyLM#50"),
    taps=NORMS,
    remedy="Compute norms in float32 or wider; round once, before the weight is applied.",
    rank=4,
    rounding=True,
)

# The dtype that a lane's activations have; float64 has no norm in too few bits of this kind.
NARROW = {"bf16": torch.bfloat16, "f32": torch.bfloat16}


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose each way to sum, and the weight applied before the cast."""
    if e.lane not in NARROW:
        return
    for said, square in SUMS.items():

        def narrow(site: MutationSite, square: Square = square) -> Tensor:
            x = norm_input(site).to(NARROW[e.lane])
            mean = square(x)[..., None] / x.shape[-1]
            root = (mean + site.reference.config.rms_norm_eps).rsqrt()
            return (x * root * norm_weight(site).to(x.dtype)).to(site.value.dtype)

        facts: Facts = {"effective": "bfloat16", "configured": "float32 or wider"}
        yield from norms(e, "norm-upcast", said, narrow, **facts)


Square = Callable[[Tensor], Tensor]


def one_by_one(x: Tensor) -> Tensor:
    """Sum squares one after another in x's own dtype, as a loop does."""
    total = torch.zeros(x.shape[:-1], dtype=x.dtype)
    for column in x.unbind(-1):
        total = total + column * column
    return total


def pairwise(x: Tensor) -> Tensor:
    """Sum squares in halves in x's own dtype, as a tree does."""
    terms = x * x
    while terms.shape[-1] > 1:
        half = terms.shape[-1] // 2
        folded = terms[..., :half] + terms[..., half : 2 * half]
        terms = torch.cat([folded, terms[..., 2 * half :]], dim=-1)
    return terms[..., 0]


SUMS: dict[str, Square] = {
    "squares summed one by one in bfloat16": one_by_one,
    "squares summed in halves in bfloat16": pairwise,
    "mean square rounded to bfloat16": lambda x: (x * x).float().sum(-1).to(x.dtype),
}
