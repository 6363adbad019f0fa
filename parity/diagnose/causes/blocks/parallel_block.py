"""The MLP runs beside attention."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import MutationSite
from parity.diagnose.operators import at_tap

CAUSE = Cause(
    id="parallel-block",
    title="the MLP runs beside attention",
    what="The second norm reads the block's input, not the stream after attention.",
    why="GPT-J's and PaLM's parallel blocks are taken over.",
    sources=(),
    taps=("post_attention_layernorm",),
    remedy="Run attention, then the MLP on its result.",
    rank=4,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose the block's input."""
    facts: Facts = {"effective": "norm(input)", "configured": "norm(post_attention)"}
    yield at_tap(e, "parallel-block", "MLP of the block's input", beside, **facts)


def beside(site: MutationSite) -> Tensor:
    """Normalise the block's input."""
    name = f"model.layers.{site.layer}.post_attention_layernorm"
    return site.reference.rms_norm(site.seen["input"], name)
