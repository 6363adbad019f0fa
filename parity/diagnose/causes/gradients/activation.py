"""The activation's derivative is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from parity.diagnose.cause import Cause, Hypothesis
from parity.diagnose.causes.gradients.common import gradient_taps
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import Mutation, MutationSite, with_gradient

CAUSE = Cause(
    id="gradient-activation",
    title="the activation's derivative is another function's",
    what="The gate's gradient is not that of silu.",
    why=(
        "A fused or hand-written kernel has a backward pass of its own, with a term left out or "
        "another activation's derivative."
    ),
    sources=(),
    taps=gradient_taps("gate_proj"),
    remedy=(
        "silu'(x) is s + x s (1 - s), with s the sigmoid of x; test the kernel's gradient "
        "against autograd's."
    ),
    rank=3,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose each derivative of `DERIVATIVES`."""
    for said, derivative in DERIVATIVES.items():
        change = Mutation("mlp_act", value_with(derivative))
        yield Hypothesis(CAUSE.id, said, (change,), effective=said, configured="silu'(x)")


def value_with(derivative: Callable[[Tensor], Tensor]) -> Callable[[MutationSite], Tensor]:
    """Return the gated activation, differentiated with `derivative`."""

    def value(site: MutationSite) -> Tensor:
        gate = site.seen["gate_proj"]
        slope = derivative(gate.detach())
        active = with_gradient(gate, torch.nn.functional.silu, lambda g: g * slope)
        return active * site.seen["up_proj"]

    return value


def _of_gelu(x: Tensor) -> Tensor:
    with torch.enable_grad():
        y = torch.nn.functional.gelu(leaf := x.clone().requires_grad_())
        return torch.autograd.grad(y.sum(), leaf)[0]


DERIVATIVES: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid(x) alone": torch.sigmoid,
    "x s (1 - s) alone": lambda x: x * x.sigmoid() * (1 - x.sigmoid()),
    "1, straight through": torch.ones_like,
    "gelu'(x)": _of_gelu,
    "relu'(x)": lambda x: (x > 0).to(x.dtype),
}
