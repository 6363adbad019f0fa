"""Heads are merged out of order."""

from __future__ import annotations

from parity.diagnose.cause import Cause
from parity.diagnose.edits.named import NamedEdits, Pattern
from parity.subjects.torch_reference.operations import JoinHeads

CAUSE = Cause(
    id="head-merge",
    title="heads are merged out of order",
    what="The output projection gets the heads' features in another order.",
    why=(
        "A reshape stands in for a transpose: [B T H N] for [B T N H], or [B N T H] is "
        "flattened as it lies."
    ),
    sources=(),
    taps=("o_proj",),
    remedy="Transpose to [B T N H] before merging.",
    rank=4,
)

EDITS = tuple(
    NamedEdits("{edit}", (pattern,), "{edit}", "heads in order")
    for pattern in (
        Pattern("operation", "joined", value=JoinHeads),
        Pattern("place", "attn_context"),
        Pattern("layout", "attn_context", ()),
    )
)
