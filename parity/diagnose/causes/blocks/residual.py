"""The residual stream is joined wrongly."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import MutationSite
from parity.diagnose.operators import at_tap

CAUSE = Cause(
    id="residual",
    title="the residual stream is joined wrongly",
    what="What a block adds, or adds to, is not the stream as it was.",
    why="The sum is forgotten, is taken after the norm, or carries a factor.",
    sources=(),
    taps=("post_attention", "output"),
    remedy="x = x + attention(norm(x)); x = x + mlp(norm(x)).",
    rank=4,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose sums of what there is, with the factors that least squares give."""
    before, normed, added = PARTS[e.short]
    parts = {name: e.real(name).ravel() for name in (before, normed, added)}
    seen = e.real(e.short).ravel()
    for names in ((added,), (normed, added), (before, added), (before,)):
        basis = np.stack([parts[name] for name in names], axis=1)
        solved = np.linalg.lstsq(basis, seen, rcond=None)[0]
        factors = {n: float(f"{f:.6g}") for n, f in zip(names, solved, strict=True)}

        def joined(site: MutationSite, factors: dict[str, float] = factors) -> Tensor:
            return torch.stack([f * site.seen[n] for n, f in factors.items()]).sum(0)

        said = " + ".join(f"{f:g} {n}" for n, f in factors.items())
        facts: Facts = {"effective": said, "configured": f"{before} + {added}"}
        yield at_tap(e, "residual", said, joined, **facts)


PARTS = {
    "post_attention": ("input", "input_layernorm", "o_proj"),
    "output": ("post_attention", "post_attention_layernorm", "down_proj"),
}
