"""Heads are silenced."""

from __future__ import annotations

from parity.diagnose.cause import Cause
from parity.diagnose.edits.named import NamedEdits, Pattern
from parity.subjects.torch_reference.operations import Unary

CAUSE = Cause(
    id="head-silenced",
    title="heads are silenced",
    what="Some query heads give zeros.",
    why="Pruned, or cut off by a sharding that does not divide the heads.",
    sources=(),
    taps=("attn_context",),
    remedy="Merge all heads.",
    rank=4,
)

EDITS = (
    NamedEdits(
        "zero {scope}",
        (Pattern("limit", "context", value=Unary("zero")),),
        "zero {scope}",
        "all heads",
        scoped=True,
    ),
)
