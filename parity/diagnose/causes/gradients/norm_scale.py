"""A norm's root mean square is taken for a constant."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.causes.gradients.common import gradient_taps
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import Mutation, MutationSite
from parity.diagnose.operators import NORM_INPUTS, NORMS, norm_input, norm_weight

CAUSE = Cause(
    id="gradient-norm-scale",
    title="the norm's scale counts as a constant",
    what=(
        "The gradient passes through the norm as if its input's root mean square did not depend "
        "on it."
    ),
    why=(
        "The statistics of a norm are computed under stop_gradient, or a hand-written backward "
        "pass leaves their part out."
    ),
    sources=(),
    taps=gradient_taps("input", "post_attention", "output"),
    remedy="Differentiate the root mean square too.",
    rank=3,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose it for all norms, and for the one whose input this is."""
    before = {tap: norm for norm, tap in NORM_INPUTS.items()}
    norm = before[e.short.removeprefix("grad.layers.")]
    facts: Facts = {"effective": "constant", "configured": "differentiated"}
    said = "root mean square constant"
    changes = tuple(Mutation(tap, constant) for tap in NORMS)
    yield Hypothesis(CAUSE.id, f"{said} in all norms", changes, **facts)
    yield Hypothesis(CAUSE.id, f"{said} in {norm}", (Mutation(norm, constant),), **facts)


def constant(site: MutationSite) -> Tensor:
    """Return the norm's output, its scale out of autograd's sight."""
    x = norm_input(site)
    rms = (x.square().mean(-1, keepdim=True) + site.reference.config.rms_norm_eps).sqrt()
    return (x / rms.detach()).to(site.value.dtype) * norm_weight(site)
