"""Softmax has a sink."""

from __future__ import annotations

from parity.diagnose.cause import Cause
from parity.diagnose.edits.named import NamedEdits, Pattern
from parity.diagnose.edits.operations import SoftmaxWithSink

CAUSE = Cause(
    id="softmax-sink",
    title="softmax has a sink",
    what="Every row's sum of exponentials has one more term: weights add up to less than 1.",
    why="Softmax-off-by-one, or an attention sink, is used.",
    sources=(),
    taps=("attn_probs",),
    remedy="Use a plain softmax.",
    rank=3,
)

EDITS = (
    NamedEdits(
        "1 added to the sum",
        (Pattern("operation", "softmax", value=SoftmaxWithSink),),
        "exp / (1 + sum)",
        "exp / sum",
    ),
)
