"""Cached keys are not rotated once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import Mutation, MutationSite

CAUSE = Cause(
    id="cache-key-rotation",
    title="cached keys are not rotated once",
    what="Keys are cached before their rotation, or are rotated once more on their way there.",
    why=(
        "A cache may hold keys rotated or not; code that mixes both conventions rotates never or "
        "twice. The call's own scores may still be right."
    ),
    sources=(),
    taps=("keys",),
    remedy="Decide for one convention (here: rotated keys) and rotate in one place.",
    rank=2,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose keys without rotation, rotated twice and rotated backwards."""
    for said, made in MADE.items():

        def held(site: MutationSite, made: Made = made) -> Tensor:
            assert site.held is not None
            return torch.cat([site.value[:, : site.held.start], made(site)], dim=1)

        changes = (Mutation("keys", held),)
        facts: Facts = {"effective": said, "configured": "rotated once"}
        yield Hypothesis("cache-key-rotation", f"keys cached {said}", changes, **facts)


Made = Callable[[MutationSite], Tensor]
MADE: dict[str, Made] = {
    "without rotation": lambda site: site.seen["k_proj"],
    "rotated twice": lambda site: site.reference.rotate(site.seen["k_rope"], site.cos, site.sin),
    "rotated backwards": lambda site: site.reference.rotate(
        site.seen["k_proj"], site.cos, -site.sin
    ),
}
