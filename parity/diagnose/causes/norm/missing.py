"""A norm is missing."""

from __future__ import annotations

from parity.diagnose.cause import Cause
from parity.diagnose.edits.named import NamedEdits, Pattern
from parity.diagnose.operators import NORMS

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

EDITS = (
    NamedEdits(
        "no norm",
        (
            Pattern("order", "normed", ("left out", "wide")),
            Pattern("order", "norm", ("left out", "rounded")),
        ),
        "identity",
        "RMSNorm",
    ),
)
