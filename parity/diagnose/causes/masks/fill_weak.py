"""Hidden scores are filled too weakly."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import MutationSite
from parity.diagnose.operators import at_tap

CAUSE = Cause(
    id="mask-fill-weak",
    title="hidden scores are filled too weakly",
    what="Hidden keys get a small score that is not small enough: they carry weight.",
    why="A fill such as -10 or -1e4 was large for other scores; -1e9 overflows in float16.",
    sources=("TransformerLens#319", "gluonts#1401", "transformers#17306"),
    taps=("attn_probs",),
    remedy="Fill with -inf or the dtype's minimum.",
    rank=3,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose it."""
    if "mask" in e.flagged:
        return
    for fill in fills(e):

        def weak(site: MutationSite, fill: float = fill) -> Tensor:
            return site.seen["attn_scores"].masked_fill(~site.mask[:, None], fill).softmax(-1)

        facts: Facts = {"effective": f"{fill:g}", "configured": "-inf"}
        yield at_tap(e, "mask-fill-weak", f"fill {fill:g}", weak, **facts)


def fills(e: Evidence) -> list[float]:
    """Return the score that hidden keys' weights tell."""
    probs, scores = (np.asarray(e.subject[n], np.float64) for n in ("attn_probs", "attn_scores"))
    rows = e.valid & e.mask.any(-1)
    hidden = np.broadcast_to((~e.mask & rows[:, :, None])[:, None], probs.shape) & (probs > 0)
    if not hidden.any():
        return []
    best = np.where(e.mask[:, None], scores, -np.inf).max(-1, keepdims=True)
    top = np.where(e.mask[:, None] & (scores == best), probs, 0).max(-1, keepdims=True)
    with np.errstate(all="ignore"):
        told = (best + np.log(probs / top))[hidden]
    # The largest weights tell it best: the smallest are subnormal.
    fill = float(np.median(told[np.argsort(-probs[hidden])[:9]]))
    return list(dict.fromkeys(float(f"{fill:.{n}g}") for n in (1, 2, 3, 12)))
