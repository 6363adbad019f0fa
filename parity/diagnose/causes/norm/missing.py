"""A norm is missing."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import MutationSite
from parity.diagnose.operators import NORMS, norm_input, norms

CAUSE = Cause(
    id="norm-missing",
    title="a norm is missing",
    what="The tap shows the norm's input, unchanged.",
    why="The final norm is forgotten, or a layer's is skipped by a flag.",
    sources=("maxtext#4974",),
    taps=NORMS,
    remedy="Apply the norm.",
    rank=4,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose it."""
    facts: Facts = {"effective": "identity", "configured": "RMSNorm"}
    yield from norms(e, "norm-missing", "no norm", identity, **facts)


def identity(site: MutationSite) -> Tensor:
    """Return the norm's output, so computed."""
    return norm_input(site).to(site.value.dtype)
