"""The rotation's backward pass turns the wrong way, or not at all."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from parity.causes.base import Cause, Evidence, Hypothesis
from parity.causes.gradients import of
from parity.causes.operators import unrotated
from parity.causes.wrong import Change, Site, differentiated

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
    taps=of("q_proj", "k_proj"),
    remedy="Rotate the gradient by the negative angle.",
    rank=3,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose both ways, of queries and keys and of the one at hand."""
    here = e.short.removeprefix("grad.layers.")[0]
    for said, wrong in (("rotated forwards", forwards), ("not rotated", unturned)):
        facts = {"effective": said, "configured": "rotated back"}
        both = Change("q_rope", wrong), Change("k_rope", wrong)
        if here == "k":  # which the backward pass comes to first
            yield Hypothesis(CAUSE.id, f"gradients of q and k {said}", both, **facts)
        alone = (Change(f"{here}_rope", wrong),)
        yield Hypothesis(CAUSE.id, f"gradient of {here} alone {said}", alone, **facts)


def forwards(site: Site) -> Tensor:
    """Return queries or keys, whose gradient is rotated once more."""
    rotate, cos, sin = site.reference.rotate, site.cos, site.sin
    turned = site.value.detach()
    return differentiated(unrotated(site), lambda _: turned.clone(), lambda g: rotate(g, cos, sin))


def unturned(site: Site) -> Tensor:
    """Return queries or keys, whose gradient is not rotated."""
    turned = site.value.detach()
    return differentiated(unrotated(site), lambda _: turned.clone(), lambda g: g)
