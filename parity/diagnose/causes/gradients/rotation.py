"""The rotation's backward pass turns the wrong way, or not at all."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.causes.gradients.common import gradient_taps
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import Mutation, MutationSite, with_gradient
from parity.diagnose.operators import unrotate

CAUSE = Cause(
    id="gradient-rotation",
    title="the rotation's gradient is not turned back",
    what=(
        "Gradients of queries or keys are rotated forwards, or left as they are, where they "
        "must be rotated back."
    ),
    why=(
        "A rotary kernel's backward pass is its forward pass with the sign of the sine changed; "
        "calling the same kernel again is easily overlooked."
    ),
    sources=(),
    taps=gradient_taps("q_proj", "k_proj"),
    remedy="Rotate the gradient by the negative angle.",
    rank=3,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose both ways, of queries and keys and of the one at hand."""
    here = e.short.removeprefix("grad.layers.")[0]
    for said, wrong in (("rotated forwards", forwards), ("not rotated", unturned)):
        facts: Facts = {"effective": said, "configured": "rotated back"}
        both = Mutation("q_rope", wrong), Mutation("k_rope", wrong)
        if here == "k":  # which the backward pass comes to first
            yield Hypothesis(CAUSE.id, f"gradients of q and k {said}", both, **facts)
        alone = (Mutation(f"{here}_rope", wrong),)
        yield Hypothesis(CAUSE.id, f"gradient of {here} alone {said}", alone, **facts)


def forwards(site: MutationSite) -> Tensor:
    """Return queries or keys, whose gradient is rotated once more."""
    rotate, cos, sin = site.reference.rotate, site.cos, site.sin
    turned = site.value.detach()
    return with_gradient(unrotate(site), lambda _: turned.clone(), lambda g: rotate(g, cos, sin))


def unturned(site: MutationSite) -> Tensor:
    """Return queries or keys, whose gradient is not rotated."""
    turned = site.value.detach()
    return with_gradient(unrotate(site), lambda _: turned.clone(), lambda g: g)
