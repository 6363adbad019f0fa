"""Squares are summed where their mean belongs."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import MutationSite
from parity.diagnose.operators import NORMS, norm_input, norm_weight, norms

CAUSE = Cause(
    id="norm-sum",
    title="squares are summed where their mean belongs",
    what="The norm divides by the length of the vector, not by its root mean square.",
    why="A library's normalize() stands in for RMSNorm.",
    sources=(),
    taps=NORMS,
    remedy="Divide by sqrt(mean(x^2) + eps).",
    rank=4,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose it."""
    facts: Facts = {"effective": "sum of squares", "configured": "mean of squares"}
    yield from norms(e, "norm-sum", "sum of squares", summed, **facts)


def summed(site: MutationSite) -> Tensor:
    """Return the norm's output, so computed."""
    wide = norm_input(site)
    root = (wide.square().sum(-1, keepdim=True) + site.reference.config.rms_norm_eps).sqrt()
    return (wide / root).to(site.value.dtype) * norm_weight(site)
