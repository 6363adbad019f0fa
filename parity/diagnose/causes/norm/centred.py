"""The mean is subtracted, as in LayerNorm."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import MutationSite
from parity.diagnose.operators import NORMS, norm_input, norm_weight, norms

CAUSE = Cause(
    id="norm-centred",
    title="the mean is subtracted, as in LayerNorm",
    what="The input's mean is taken away before its root mean square.",
    why="LayerNorm stands in for RMSNorm.",
    sources=(),
    taps=NORMS,
    remedy="Use RMSNorm: no mean is subtracted.",
    rank=4,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose it."""
    facts: Facts = {"effective": "x - mean(x)", "configured": "x"}
    yield from norms(e, "norm-centred", "mean subtracted", centred, **facts)


def centred(site: MutationSite) -> Tensor:
    """Return the norm's output, so computed."""
    wide = norm_input(site)
    wide = wide - wide.mean(-1, keepdim=True)
    rms = (wide.square().mean(-1, keepdim=True) + site.reference.config.rms_norm_eps).sqrt()
    return (wide / rms).to(site.value.dtype) * norm_weight(site)
