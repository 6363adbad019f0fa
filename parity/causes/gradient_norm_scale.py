"""A norm's root mean square is taken for a constant."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from parity.causes.base import Cause, Evidence, Hypothesis
from parity.causes.gradients import of
from parity.causes.operators import NORM_INPUTS, NORMS, norm_input, norm_weight
from parity.causes.wrong import Change, Site

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
    taps=of("input", "post_attention", "output"),
    remedy="Differentiate the root mean square too.",
    rank=3,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose it for all norms, and for the one whose input this is."""
    before = {tap: norm for norm, tap in NORM_INPUTS.items()}
    norm = before[e.short.removeprefix("grad.layers.")]
    facts = {"effective": "constant", "configured": "differentiated"}
    said = "root mean square constant"
    changes = tuple(Change(tap, constant) for tap in NORMS)
    yield Hypothesis(CAUSE.id, f"{said} in all norms", changes, **facts)
    yield Hypothesis(CAUSE.id, f"{said} in {norm}", (Change(norm, constant),), **facts)


def constant(site: Site) -> Tensor:
    """Return the norm's output, its scale out of autograd's sight."""
    x = norm_input(site)
    rms = (x.square().mean(-1, keepdim=True) + site.reference.config.rms_norm_eps).sqrt()
    return (x / rms.detach()).to(site.value.dtype) * norm_weight(site)
