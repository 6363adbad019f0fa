"""Squares are summed where their mean belongs."""

from __future__ import annotations

from parity.diagnose.cause import Cause
from parity.diagnose.edits.named import NamedEdits, Pattern
from parity.diagnose.operators import NORMS
from parity.subjects.torch_reference.operations import Reduce

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

EDITS = (
    NamedEdits(
        "sum of squares",
        (Pattern("operation", "mean", value=Reduce("sum")),),
        "sum of squares",
        "mean of squares",
    ),
)
