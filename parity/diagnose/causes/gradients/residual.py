"""The gradient goes through the block or past it, not both ways."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from parity.diagnose.cause import Cause, Hypothesis
from parity.diagnose.causes.gradients.common import gradient_taps
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import Mutation, MutationSite
from parity.diagnose.operators import NORM_INPUTS

CAUSE = Cause(
    id="gradient-residual",
    title="the residual's gradient lacks one of its two ways",
    what=(
        "The gradient at a block's input is that of the block alone, or of the sum that passes "
        "it by."
    ),
    why=(
        "A block's input is detached for recomputation or for a kernel's sake, on one of the "
        "two ways it takes."
    ),
    sources=(),
    taps=gradient_taps("input", "post_attention"),
    remedy="Let the block's input reach both the block and the sum.",
    rank=4,
)

# Where a block's output is added to its input, and what is added.
ENDS = {"input": ("post_attention", "o_proj"), "post_attention": ("output", "down_proj")}


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose that either way is cut."""
    tap = e.short.removeprefix("grad.layers.")
    total, term = ENDS[tap]
    norm = {held: name for name, held in NORM_INPUTS.items()}[tap]
    right = "both ways"

    def past(site: MutationSite) -> Tensor:
        return site.seen[tap].detach() + site.seen[term]

    def through(site: MutationSite) -> Tensor:
        name = f"model.layers.{site.layer}.{norm}"
        return site.reference.rms_norm(site.seen[tap].detach(), name)

    said = f"no gradient from {total} past the block"
    yield Hypothesis(CAUSE.id, said, (Mutation(total, past),), "through the block", right)
    said = f"no gradient out of {norm}"
    yield Hypothesis(CAUSE.id, said, (Mutation(norm, through),), "past the block", right)
