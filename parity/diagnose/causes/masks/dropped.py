"""The kernel drops the mask."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import MutationSite
from parity.diagnose.operators import at_tap

CAUSE = Cause(
    id="mask-dropped",
    title="the kernel drops the mask",
    what="The mask is right when it is made, and the softmax does not use it.",
    why="A kernel does not take the argument, or a layer does not pass it on.",
    sources=("torch-to-nnef#217",),
    taps=("attn_probs",),
    remedy="Pass the mask to the kernel, and probe what it obeys (`parity probe`).",
    rank=1,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose it."""
    if "mask" in e.flagged:
        return
    facts: Facts = {"effective": "no mask", "configured": "mask"}
    yield at_tap(e, "mask-dropped", "mask not applied", dropped, **facts)


def dropped(site: MutationSite) -> Tensor:
    """Return softmax over all keys."""
    return site.seen["attn_scores"].softmax(-1)
