"""The mean is subtracted, as in LayerNorm."""

from __future__ import annotations

from parity.diagnose.cause import Cause
from parity.diagnose.edits.named import NamedEdits, Pattern
from parity.diagnose.edits.operations import OverFeatures
from parity.diagnose.operators import NORMS

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

EDITS = (
    NamedEdits(
        "mean subtracted",
        (Pattern("insertion", "wide", value=OverFeatures("less its mean")),),
        "x - mean(x)",
        "x",
    ),
)
