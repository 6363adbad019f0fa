"""A norm's weight is not applied as stored."""

from __future__ import annotations

from parity.diagnose.cause import Cause
from parity.diagnose.edits.named import NamedEdits, Pattern
from parity.diagnose.operators import NORMS

CAUSE = Cause(
    id="norm-weight",
    title="a norm's weight is not applied as stored",
    what="The normalised vector is left as it is, or multiplied by the weight plus one.",
    why=(
        "A tensor is missing and its initial ones are left, a flag turns weights off, or "
        "Gemma's convention (1 + w) is taken over."
    ),
    sources=(),
    taps=NORMS,
    remedy="Multiply by the stored weight; refuse a checkpoint that lacks it.",
    rank=3,
)

EDITS = (
    NamedEdits(
        "weight 1", (Pattern("order", "norm", ("left out", "rounded")),), "weight 1", "weight w"
    ),
    NamedEdits(
        "weight w + {0:g}", (Pattern("factor", "gain", ("+",)),), "weight w + {0:g}", "weight w"
    ),
)
